"""The explorer's tables against the results' arrays, and its view in the page's address: links, back and forward."""

import re

import numpy as np
import pytest

from clipbias.explain.results import CHANGES
from clipbias.report.explorer import explorer_data
from tests.documents import ROOT
from tests.reference.sections import order
from tests.report.exploring import GRID, LAYERS, Expected, pick


def rows_of(browser, caption):
    """A table's rows, each a first cell and the others, from the part of its caption that tells it from the others."""
    tables = browser.evaluate(
        "[...document.querySelectorAll('#explore-means table')].map(t => [t.caption.textContent,"
        " [...t.rows].map(r => [...r.cells].map(c => c.textContent))])"
    )
    ((_, rows),) = [table for table in tables if caption in table[0]]
    return [(row[0], row[1:]) for row in rows]


def table_of(browser, caption):
    return dict(rows_of(browser, caption))


def shares(text):
    """`−14.3 ± 1.3` as numbers."""
    return [float(part) for part in text.replace("−", "-").split(" ± ")]


def mean_and_error(values):
    values = np.asarray(values, float)
    return [values.mean(), values.std(ddof=1) / np.sqrt(len(values))]


class Numbers(Expected):
    """What the tables must say of an image, in shares."""

    def __init__(self, results):
        super().__init__(results)
        self.labels = self.predictions.labels[self.explore.images]

    def own(self, image):
        return self.pair(image, self.labels[image])

    def token(self, model, image, place):
        row = self.explore.models[model].text[self.own(image)].astype(float)
        return 100 * row[place].sum() / row.sum()

    def on_prompts(self, model, image):
        maps = self.explore.models[model]
        pair = self.own(image)
        return 100 * maps.slot_relevancy[pair].sum() / maps.relevancy_sum[pair]

    def attention(self, model, image, layer):
        return [self.value(model, "attention", image, layer, patch) for patch in range(GRID * GRID)]

    def alike(self, image, layer, slots):
        near = np.mean(
            [[self.value("ivlp", "distance", image, layer, s, p) for p in range(GRID * GRID)] for s in slots], axis=0
        )
        return order(np.array(self.attention("ivlp", image, layer)), -near)


def test_means_are_those_of_the_images_that_pass(opened, explored):
    numbers = Numbers(explored)
    data = explorer_data(explored)["images"]
    corrected = [
        i for i, image in enumerate(data) if image["causes"]["ivlp"]["change"] == CHANGES.index("wrong → right")
    ]
    pick(opened, "change", CHANGES.index("wrong → right"))
    rows = table_of(opened, f"Mean shares over the {len(corrected)} images")
    assert rows["share (%)"] == ["IVLP", "Zero-shot", "difference"]
    for name, place in {"SOS": [0], "category": [5, 6], "“.”": [7]}.items():
        ivlp, other = ([numbers.token(model, i, place) for i in corrected] for model in ("ivlp", "zero_shot"))
        for text, values in zip(rows[f"text relevancy: {name}"], (ivlp, other, np.subtract(ivlp, other)), strict=True):
            np.testing.assert_allclose(shares(text), mean_and_error(values), atol=0.051)
    prompts = [numbers.on_prompts("ivlp", i) for i in corrected]
    np.testing.assert_allclose(shares(rows["image relevancy: prompts"][0]), mean_and_error(prompts), atol=0.051)
    assert rows["image relevancy: prompts"][1:] == ["–", "–"]
    on_patches = [100 * sum(numbers.attention("zero_shot", i, LAYERS - 1)) for i in corrected]
    np.testing.assert_allclose(
        shares(rows[f"[cls] attention, layer {LAYERS}: patches"][1]), mean_and_error(on_patches), atol=0.051
    )
    effects = table_of(opened, f"What IVLP changed in calibrated log-likelihood over {len(corrected)} images")
    causes = [data[i]["causes"]["ivlp"] for i in corrected]
    gain = np.mean([sum(cause["effects"].values()) for cause in causes])
    for name in ("attention", "scale", "values"):
        values = [cause["effects"][name] for cause in causes]
        mean, share, decided = effects[name]
        np.testing.assert_allclose(shares(mean), mean_and_error(values), atol=0.00051)
        assert float(share.replace("−", "-").removesuffix(" %")) == pytest.approx(
            100 * np.mean(values) / gain, abs=0.51
        )
        assert decided == f"{sum(cause['decided'] == name for cause in causes)} of {len(corrected)}"


def test_words_of_one_class(opened, explored):
    numbers = Numbers(explored)
    label, count = max(((c, n) for c, n in enumerate(np.bincount(numbers.labels)) if n > 1), key=lambda x: x[1])
    assert "word by word" not in opened.evaluate("document.getElementById('explore-means').textContent")
    pick(opened, "of", label)
    images = np.flatnonzero(numbers.labels == label)
    names, cells = zip(*rows_of(opened, f"word by word, class {label}, over the {count} images"), strict=True)
    assert " ".join(names) == "share (%) “SOS” “[1]” “a” “[2]” “photo” “of” “a” “class” “1” “.”"
    for name, place in {"“SOS”": 0, "“of”": 3, "“class”": 5, "“.”": 7}.items():
        ivlp, other = ([numbers.token(model, i, [place]) for i in images] for model in ("ivlp", "zero_shot"))
        for text, values in zip(cells[names.index(name)], (ivlp, other, np.subtract(ivlp, other)), strict=True):
            np.testing.assert_allclose(shares(text), mean_and_error(values), atol=0.051)
    # A word in whose place the other text has a prompt has nothing to be compared with.
    assert cells[names.index("“[1]”")][1:] == ["–", "–"] and cells[names.index("“photo”")][::2] == ["–", "–"]


def test_every_layer_has_its_numbers(opened, explored):
    numbers = Numbers(explored)
    count = len(explored.explore.images)
    opened.mouse("#explore-image-3", click=True)
    pick(opened, "slot", 1)
    rows = table_of(opened, "IVLP, layer by layer; similarity to prompt 2")
    everywhere = range(count)
    for layer in range(LAYERS):
        most, on_prompts, mean_on_prompts, share, mean_share, alike, mean_alike = rows[str(layer + 1)]
        attention = np.array(numbers.attention("ivlp", 3, layer))
        place = int(attention.argmax())
        assert most == f"row {place // GRID + 1}, column {place % GRID + 1}: {100 * attention[place]:.1f} %"
        slots = explored.explore.models["ivlp"].slot_attention[:, layer].sum(-1) * 100
        assert float(on_prompts) == pytest.approx(slots[3], abs=0.051)
        np.testing.assert_allclose(shares(mean_on_prompts), mean_and_error(slots), atol=0.051)
        deep = [100 * explored.explore.models["ivlp"].prompt_share_from[numbers.own(i), layer] for i in everywhere]
        assert float(share) == pytest.approx(deep[3], abs=0.051)
        np.testing.assert_allclose(shares(mean_share), mean_and_error(deep), atol=0.051)
        likeness = [numbers.alike(i, layer, [1]) for i in everywhere]
        assert shares(alike)[0] == pytest.approx(likeness[3], abs=0.0051)
        np.testing.assert_allclose(shares(mean_alike), mean_and_error(likeness), atol=0.0051)
    assert list(table_of(opened, "Zero-shot, layer by layer")["layer"]) == ["[cls] looks most at"]


VIEW = ("image", "class", "model", "beside", "layer", "slot", "of", "change", "decided", "order")


def view(browser):
    """What the choices stand at, and which image is shown."""
    controls = browser.evaluate(
        f"Object.fromEntries({list(VIEW[1:])}.map(n => [n, document.getElementById('explore-' + n).value]))"
    )
    shown = browser.evaluate("document.querySelector('#explore-images [aria-selected=true]').id")
    maps = browser.evaluate("[...document.querySelectorAll('#explore-maps figcaption')].map(e => e.textContent)")
    return controls | {"image": shown, "maps": maps}


def moved(browser, before):
    """The address once it is another."""
    browser.wait_for(f"location.hash !== {before!r}")
    return browser.evaluate("location.hash")


@pytest.mark.ci
def test_an_address_leads_back_to_a_view(opened, page, explored):
    number = explored.explore.images[4]
    stops = [("", view(opened))]

    def stop():
        stops.append((moved(opened, stops[-1][0]), view(opened)))

    opened.mouse("#explore-image-4", click=True)
    stop()
    assert stops[-1][0] == f"#explore/image={number}"
    row = explored.explore.pairs[:, 0].tolist()
    for name, value in (
        ("class", len(row) - 1 - row[::-1].index(4)),
        ("layer", 2),
        ("slot", 1),
        ("beside", "bias"),
        ("order", "margin"),
        ("change", 2),
    ):
        pick(opened, name, value)
        stop()
    assert len({str(shown) for _, shown in stops}) == len(stops)
    for step, path in (("back", stops[-2::-1]), ("forward", stops[1:])):
        for address, shown in path:
            opened.evaluate(f"history.{step}()")
            opened.wait_for(f"location.hash === {address!r}")
            assert view(opened) == shown
    opened.open(page, fragment=stops[-1][0])
    assert view(opened) == stops[-1][1]
    assert opened.evaluate("Math.abs(document.getElementById('explore').getBoundingClientRect().top)") < 2


def test_what_is_chosen_while_an_address_is_written_stays(opened):
    """The browser tells of a new address a little later; by then the reader may have gone on."""
    opened.evaluate(
        "(() => { window.seen = []; addEventListener('hashchange', e => seen.push(new URL(e.newURL).hash));"
        " const later = setTimeout, layer = document.getElementById('explore-layer');"
        " const go = value => { layer.value = value; layer.dispatchEvent(new Event('input')); };"
        " window.setTimeout = (write, wait) => later(() => { write(); window.setTimeout = later; go(1); }, wait);"
        " go(2); })()"
    )
    opened.wait_for("seen.length === 2")
    assert opened.evaluate("seen") == ["#explore/layer=2", "#explore/layer=1"]
    assert view(opened)["layer"] == "1"


MISSED = "(e => e.hidden ? '' : e.textContent)(document.getElementById('explore-missed'))"


def test_the_addresses_of_the_docs_work_on_a_page(opened, page):
    addresses = re.findall(r"report\.html(#explore/[^`]*)", (ROOT / "docs" / "report.md").read_text("utf-8"))
    assert addresses
    for address in addresses:
        opened.open(page, fragment=address)
        assert opened.evaluate(MISSED) == ""
        settings = dict(part.split("=") for part in address.removeprefix("#explore/").split("&"))
        assert settings and settings.items() <= view(opened).items()


@pytest.mark.long
def test_what_an_address_asks_in_vain_is_said(opened, page, explored):
    shown = view(opened)
    numbers = sorted(explored.explore.images.tolist())
    images = f"Its images are, by their numbers in the dataset: {', '.join(map(str, numbers))}."
    opened.open(page, fragment="#explore/image=117&layer=3")  # an image of the dataset, but not of the page
    assert opened.evaluate(MISSED) == f"This link asks for image=117, which this page cannot show. {images}"
    assert view(opened) == shown | {"layer": "3"} and opened.evaluate("document.getElementById('explore').open")
    wrong = "image=99999&class=-1&model=nobody&beside=*&layer=0&slot=9&of=77&change=4&decided=luck&order=age"
    opened.open(page, fragment=f"#explore/{wrong}")
    message = opened.evaluate(MISSED)
    assert message == f"This link asks for {wrong.replace('&', ', ')}, which this page cannot show. {images}"
    assert view(opened) == shown and opened.evaluate("location.hash") == f"#explore/{wrong}"
    pick(opened, "layer", 2)  # what the reader does next takes the sentence away
    assert opened.evaluate(MISSED) == ""
    opened.open(page, fragment="#explore/%E0%A4%A&&=&layer=1e1")
    assert opened.evaluate(MISSED) == "This link asks for layer=1e1, which this page cannot show."
    # The true class may go by its number.
    label = explored.predictions.labels[explored.explore.images[0]]
    for right in (
        "#explore/",
        f"#explore/layer=1&image={explored.explore.images[0]}&class={label}",
        "#config",
    ):
        opened.open(page, fragment=right)
        assert opened.evaluate(MISSED) == ""


@pytest.mark.long
def test_a_link_to_another_section_leaves_the_view_alone(opened, page):
    opened.open(page, fragment="#explore/model=nobody&layer=1")  # what there is counts
    assert view(opened)["layer"] == "1"
    opened.evaluate("location.hash = '#config'")
    assert view(opened)["layer"] == "1"
    pick(opened, "layer", 2)
    assert moved(opened, "#config") == "#explore/layer=2"
