"""The explorer's data as a script reads them, and the page in a real browser: clicked, driven by keys, read back."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from clipbias.analysis.results import CHANGES, Missing
from clipbias.analysis.results_file import save_results
from clipbias.report import write_report
from clipbias.report.overlay import changed_pictures, explorer_data
from tests.browser import Browser
from tests.report.markup import Page
from tests.report.synthetic import only_sections, synthetic_results

GRID = 4
LAYERS = 3
SLOTS = 2
HOSTILE = "</script><img src=x onerror=\"alert('1')\"> & co"


def only_explored():
    results = synthetic_results(pictures=3, grid=GRID, image_size=32, layers=LAYERS, vision_prompts=SLOTS)
    return only_sections(results, "explore", "causal")


def read(browser):
    return browser.evaluate("document.getElementById('explore-read').textContent")


def pick(browser, name, value):
    """Changes a choice as a reader does."""
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('explore-{name}'); e.value = '{value}';"
        " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind)); })()"
    )


def near(text, expected):
    """Equal up to how the page rounds a number, to three digits."""
    return float(text) == pytest.approx(expected, rel=6e-3, abs=1e-9)


class Expected:
    """What the page must say, from the results' arrays."""

    def __init__(self, results):
        self.explore = results.sections["explore"]

    def pair(self, image, label):
        rows = (self.explore.pairs == (image, label)).all(1)
        return int(np.flatnonzero(rows)[0])

    def value(self, model, name, *place):
        """A map's value at a patch, the last of the place."""
        maps = self.explore.models[model]
        rest = place[:-1]
        unit = np.float64(getattr(maps, f"{name}_scale")[rest]) / 255
        lowest = getattr(maps, f"{name}_lowest", None)
        return float(getattr(maps, name)[place] * unit + (0 if lowest is None else lowest[rest]))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    opened_browser = Browser(tmp_path_factory.mktemp("profile"))
    yield opened_browser
    opened_browser.close()


@pytest.fixture
def opened(browser, page):
    browser.complaints.clear()
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    yield browser
    assert browser.complaints == []


@pytest.fixture(scope="session")
def explored():
    """Results; not to be changed."""
    return only_explored()


@pytest.fixture(scope="session")
def page(explored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    save_results(folder, explored)
    return write_report(folder, folder / "report")


def decoded(uri):
    """The pixels of an inlined picture."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_arrays_are_packed_and_images_are_described(explored):
    data = explorer_data(explored)
    explore = explored.sections["explore"]
    assert data["pairs"] == explore.pairs[:, 1].tolist()
    for model in data["models"]:
        maps = vars(explore.models[model["key"]])
        names = {name for name, value in maps.items() if isinstance(value, np.ndarray)}
        assert names - set(model["arrays"]) == {"margin", "log_likelihood"}
        for name, packed in model["arrays"].items():
            values = np.frombuffer(base64.b64decode(packed["data"]), "u1" if packed["type"] == "uint8" else "<f4")
            np.testing.assert_array_equal(values.reshape(packed["shape"]), maps[name])
    for row, image in enumerate(data["images"]):
        np.testing.assert_array_equal(decoded(image["picture"]), explore.pictures[row])
        label = explored.predictions.labels[explore.images[row]]
        assert image["label"] == label == data["pairs"][image["pairs"][0]]
        assert image["models"]["ivlp"]["margin"] == explore.models["ivlp"].margin[row]
        assert image["models"]["bias"]["likelihood"] == explore.models["bias"].log_likelihood[row]
        number = explore.images[row]
        before, after = (explored.predictions.models[name][number] == label for name in ("zero_shot", "ivlp"))
        words = {(False, True): "wrong → right", (True, False): "right → wrong", (True, True): "both right"}
        assert CHANGES[image["changes"]["ivlp"]] == words.get((bool(before), bool(after)), "both wrong")
    assert {0, 1} <= {image["changes"]["ivlp"] for image in data["images"]}


def test_a_model_without_maps_is_left_out_and_names_cannot_end_the_script(tmp_path):
    results = only_explored()
    results.sections["explore"].models["bias"] = Missing("No map follows its logit.")
    dataset = dataclasses.replace(results.dataset, class_names=(HOSTILE, *results.dataset.class_names[1:]))
    explore = dataclasses.replace(results.sections["explore"], names=(HOSTILE, *results.sections["explore"].names[1:]))
    save_results(
        tmp_path, dataclasses.replace(results, dataset=dataset, sections={**results.sections, "explore": explore})
    )
    page = Page(write_report(tmp_path, tmp_path / "report").read_text("utf-8"))
    assert "Explore, Bias tuning: No map follows its logit." in page.text and page.tags.count("script") == 2
    data = next(json.loads(words) for words in page.words if words.startswith('{"changes"'))
    assert data["images"][0]["name"] == data["classes"]["0"] == HOSTILE
    assert [model["key"] for model in data["models"]] == ["zero_shot", "ivlp"]
    assert all(set(image["models"]) == {"zero_shot", "ivlp"} for image in data["images"])


def check_patch(text, expected, image, label, layer, slots, row, column):
    """All numbers of a patch, of IVLP and of zero-shot beside it."""
    assert text.startswith(f"Row {row + 1}, column {column + 1}. IVLP: ")
    tuned_text, _, other = text.partition("Zero-shot: ")
    patch = row * GRID + column
    pair = expected.pair(image, label)
    for model, words in (("ivlp", tuned_text), ("zero_shot", other)):
        relevancy, share, attention = re.search(
            r"relevancy (\S+), (\S+) % of the image's; \[cls\] attention ([\d.e−-]+\d)", words
        ).groups()
        value = expected.value(model, "relevancy", pair, patch)
        assert near(relevancy, value)
        whole = expected.explore.models[model].relevancy_sum[pair]
        assert float(share) == pytest.approx(100 * value / whole, abs=0.051)
        assert near(attention, expected.value(model, "attention", image, layer, patch))
    distances = np.mean(
        [[expected.value("ivlp", "distance", image, layer, s, p) for p in range(GRID * GRID)] for s in slots], axis=0
    )
    similarity, distance = re.search(r"similarity (\S+), distance (\S+)\.", tuned_text).groups()
    assert near(distance, distances[patch])
    assert near(similarity, 1 - (distances[patch] - distances.min()) / np.ptp(distances))


def test_pointing_and_clicking_reads_the_arrays_numbers(opened, explored):
    expected = Expected(explored)
    labels = explored.predictions.labels[explored.sections["explore"].images]
    opened.mouse("canvas[data-place='ivlp/attention']", across=0.6, down=0.1)
    check_patch(read(opened), expected, 0, labels[0], LAYERS - 1, (0, 1), 0, 2)
    opened.mouse("#explore-image-5", click=True)
    assert opened.evaluate("document.querySelector('[aria-selected=true]').id") == "explore-image-5"
    opened.mouse("canvas[data-place='zero_shot/relevancy']", across=0.99, down=0.99)
    check_patch(read(opened), expected, 5, labels[5], LAYERS - 1, (0, 1), 3, 3)
    # A click on a slot chooses it for the similarity, and reads its own numbers.
    opened.mouse("[data-place='ivlp/slots/1']", click=True)
    pair = expected.pair(5, labels[5])
    text = read(opened)
    relevancy, attention = re.search(r"prompt slot 2: relevancy (\S+), .* attention in layer 3 (\S+),", text).groups()
    assert near(relevancy, explored.sections["explore"].models["ivlp"].slot_relevancy[pair, 1])
    assert near(attention, explored.sections["explore"].models["ivlp"].slot_attention[5, LAYERS - 1, 1])
    assert opened.evaluate("document.getElementById('explore-slot').value") == "1"
    opened.mouse("canvas[data-place='ivlp/similarity']", across=0.3, down=0.3)
    check_patch(read(opened), expected, 5, labels[5], LAYERS - 1, (1,), 1, 1)


def test_the_keyboard_reads_the_arrays_numbers(opened, explored):
    explore = explored.sections["explore"]
    image = len(explore.images) - 1
    label = explored.predictions.labels[explore.images[-1]]

    def press(selector, *keys):
        opened.evaluate(f'document.querySelector("{selector}").focus()')
        opened.press(*keys)

    press("#explore-images", "End", "ArrowLeft", "ArrowRight")
    press("#explore-layer", "ArrowLeft")
    press("[data-place='ivlp/similarity']", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp")
    check_patch(read(opened), Expected(explored), image, label, LAYERS - 2, (0, 1), 1, 1)
    press("[data-place='ivlp/tokens/0']", "ArrowRight")
    row = explore.models["ivlp"].text[Expected(explored).pair(image, label)]
    value, share = re.search(r"token 2, “\[1\]”: relevancy (\S+), (\S+) % of the text's", read(opened)).groups()
    assert near(value, row[1]) and float(share) == pytest.approx(100 * row[1] / row.sum(), abs=0.051)


def test_another_class_and_model_are_shown_where_they_are_chosen(opened, explored):
    expected = Expected(explored)
    pairs = explored.sections["explore"].pairs
    image = int(np.bincount(pairs[:, 0]).argmax())
    pair = int(np.flatnonzero(pairs[:, 0] == image)[-1])
    opened.mouse(f"#explore-image-{image}", click=True)
    pick(opened, "class", pair)
    pick(opened, "model", "bias")
    pick(opened, "beside", "")
    opened.mouse("canvas[data-place='bias/relevancy']", across=0.1, down=0.9)
    value = re.search(r"Bias tuning: relevancy (\S+),", read(opened))[1]
    assert near(value, expected.value("bias", "relevancy", pair, 12)) and "similarity" not in read(opened)


def test_a_card_opens_its_picture(opened, explored):
    opened.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false; })")
    cards = opened.evaluate("[...document.querySelectorAll('[data-explore]')].map((e) => Number(e.dataset.explore))")
    pick(opened, "change", "2")
    opened.mouse(f"[data-explore='{cards[-1]}']", click=True)
    assert opened.evaluate("document.getElementById('explore').open")
    name = explored.sections["explore"].names[cards[-1]]
    assert opened.evaluate("document.getElementById('explore-picture').alt") == name


@pytest.mark.parametrize("key", ["ivlp", "bias"])
def test_the_first_pages_pictures_are_those_that_tuning_changed(explored, key):
    """Corrected, then broken: predictions and maps of both models, computed anew from the arrays."""
    expected = Expected(explored)
    explore = expected.explore
    model = next(each for each in explored.tuned if each.key == key)
    labels = explored.predictions.labels[explore.images]
    before, after = (explored.predictions.models[each][explore.images] for each in ("zero_shot", key))
    corrected = np.flatnonzero((before != labels) & (after == labels))
    broken = np.flatnonzero((before == labels) & (after != labels))
    pictures = changed_pictures(explored, model)
    assert [each.place for each in pictures] == [*corrected[:3], *broken[:3]] and pictures
    names = explored.dataset.class_names
    for place, change, shown in pictures:
        (_, _, picture), *maps = shown
        assert change == ("corrected" if place in corrected else "broken")
        np.testing.assert_array_equal(decoded(picture), explore.pictures[place])
        for (said, _, data), each, predicted in zip(
            maps, (explored.zero_shot, model), (before[place], after[place]), strict=True
        ):
            right = "✓" if predicted == labels[place] else "✗"
            assert said == f"{each.label}: {names[predicted]} {right}"
            # The corner's pixel is that of its patch, between the picture and the colour of the map.
            pair = expected.pair(place, labels[place])
            patches = np.float64([expected.value(each.key, "relevancy", pair, patch) for patch in range(GRID**2)])
            heat = (patches[0] - patches.min()) / np.ptp(patches)
            alpha = 0.25 + 0.5 * heat
            colour = 255 * np.float64(colormaps["inferno"](heat)[:3])
            blended = (1 - alpha) * np.float64(explore.pictures[place][0, 0]).mean() + alpha * colour
            np.testing.assert_allclose(np.float64(decoded(data)[0, 0]), blended, atol=12)


@pytest.mark.parametrize("width", [400, 1600])
def test_the_first_page_fits_every_window(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every((image) => image.alt)")


def test_filters_and_orders(opened, explored):
    images = explorer_data(explored)["images"]
    listed = "[...document.querySelectorAll('#explore-images [role=option]')].map(e => Number(e.id.split('-')[2]))"
    properties = {
        "change": [image["changes"]["ivlp"] for image in images],
        "of": [image["label"] for image in images],
    }
    for name, values in properties.items():
        for value in set(values):
            pick(opened, name, value)
            same = [i for i, candidate in enumerate(values) if candidate == value]
            assert opened.evaluate(listed) == same and 0 < len(same) < len(images)
            count = opened.evaluate("document.getElementById('explore-count').textContent")
            assert count == f"{len(same)} of {len(images)} images."
        pick(opened, name, "")
    pick(opened, "order", "margin-loss")
    listing = opened.evaluate(listed)
    margins = [image["models"]["ivlp"]["margin"] - image["models"]["zero_shot"]["margin"] for image in images]
    assert listing == sorted(listing, key=lambda i: (margins[i], i)) != list(range(len(images)))


def test_without_scripts_a_sentence_says_so(browser, page):
    browser.open(page, scripts=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#explore")["nodeId"]
    browser.call("DOM.setAttributeValue", nodeId=node, name="open", value="")
    tree = browser.call("DOMSnapshot.captureSnapshot", computedStyles=["display"])
    browser.open(page)  # scripts again
    strings = tree["strings"]
    shown = "".join(strings[i] for i in tree["documents"][0]["layout"]["text"] if i >= 0)
    assert "needs scripts, and they are off" in shown and "Prompt slot" not in shown
