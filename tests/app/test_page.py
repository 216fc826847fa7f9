"""The page in a browser: what it shows is what the library says, and nothing is asked of any other machine.

gradio needs an environment of its own, so `.ci/app` runs these; elsewhere they are skipped.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipbias.app import ATTENTION, LIKELIEST, PICTURES, RELEVANCY, ZERO_SHOT, Bench, build, probabilities, serve
from clipbias.clip import Clip
from tests.app.adapters import NAMES, PICTURE
from tests.browser import Browser

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own, of what it is built on

# What stands in the two lists of probabilities, and in the fields.
LABELS = "[...document.querySelectorAll('[data-testid=label-output-value]')].map(x => x.textContent.trim())"
SHARES = "[...document.querySelectorAll('.confidence-set .text')].map(x => x.textContent.trim())"
NOTES = "[...document.querySelectorAll('.note')].map(x => x.textContent.trim())"
NAMES_FIELD = "document.querySelectorAll('textarea')[0]"
PATIENCE = 600  # seconds, for programs that are compiled while somebody waits
TOAST = "document.querySelector('.toast-body')"


def test_what_the_page_does_when_it_is_asked(bench: Bench, files: dict, tmp_path: Path) -> None:
    """Its functions, called as gradio calls them, without a browser."""
    import gradio

    page = build(bench, examples=[])
    events: dict[str, Any] = {event.fn.__name__: event.fn for event in page.fns.values() if event.fn}
    Image.fromarray(PICTURE).save(path := str(tmp_path / "photo.png"))
    question = ("\n".join(NAMES), "a photo of a {}.", "prompts", None)
    *shares, answer, classes, slot = events["classify"](path, *question)
    assert answer == ""  # not calibrated
    sides = [bench.bind(ZERO_SHOT, question[0], question[1]), bench.bind("prompts", question[0])]
    for label_shares, side in zip(shares, sides, strict=True):
        assert [*label_shares] == NAMES and list(label_shares.values()) == probabilities(side, PICTURE).tolist()
    assert classes["choices"] == [(name, name) for name in (LIKELIEST, *NAMES)] or LIKELIEST in classes["choices"]
    assert slot["maximum"] == 4 and slot["interactive"]
    first, note, second, other = events["look"](path, *question, RELEVANCY, NAMES[1], 2, 1)
    assert first.ndim == second.ndim == 3 and f"{NAMES[1]}: layers 2 to" in note and f"{NAMES[1]}: layers 2 to" in other
    assert events["look"](path, *question[:2], ZERO_SHOT, None, ATTENTION, LIKELIEST, 1, 1)[2:] == [None, ""]
    assert events["look"](None, *question, RELEVANCY, LIKELIEST, 1, 1) == [None, "", None, ""]
    assert events["fill"]("prompts", str(files["bias"]), "x", "y") == ("tree\nhouse", "a photo of a {}.")
    assert events["fill"](ZERO_SHOT, None, "x", "y") == ("x", "y")
    with pytest.raises(gradio.Error, match="does not fit"):
        events["classify"](path, *question[:3], str(files["other"]))


@pytest.fixture
def opened(browser: Browser, address: str, tmp_path: Path) -> Browser:
    """With a picture that was chosen."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(address, width=1280, height=1000)
    browser.wait_for("document.querySelector('input[accept*=image]')", PATIENCE)
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    browser.choose_file("input[accept*=image]", tmp_path / "photo.png")
    browser.wait_for(f"{NOTES}.length == 2", PATIENCE)
    return browser


def complaints(browser: Browser) -> list:
    """What the page complains of, but for what gradio's own examples write to the console."""
    return [complaint for complaint in browser.complaints if "Method not implemented" not in json.dumps(complaint)]


def write(browser: Browser, field: str, text: str) -> None:
    """Replaces what a field holds, as somebody who types would."""
    browser.evaluate(
        f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}})); 1"
    )


def click(browser: Browser, words: str) -> None:
    button = f"[...document.querySelectorAll('button')].find(x => x.textContent.trim() == {words!r})"
    browser.evaluate(f"{button}.click(); 1")


def test_a_picture_is_classified_both_ways(opened: Browser, bench: Bench, address: str) -> None:
    sides = [bench.bind(method, "\n".join(NAMES)) for method in (ZERO_SHOT, "prompts")]
    expected = [probabilities(side, PICTURE) for side in sides]
    assert opened.evaluate(LABELS) == [NAMES[p.argmax()] for p in expected]
    shown = " ".join(opened.evaluate(SHARES))
    assert all(name in shown for name in NAMES)
    notes = [bench.look(side, PICTURE, int(p.argmax()))[1] for side, p in zip(sides, expected, strict=True)]
    assert opened.evaluate(NOTES) == notes
    assert opened.requests
    assert not [url for url in opened.requests if not url.startswith((address, "data:", "blob:"))]
    assert not complaints(opened)


def test_other_names_and_a_name_that_is_markup(opened: Browser, bench: Bench) -> None:
    names = ["<b>star</b>", "moon"]
    write(opened, NAMES_FIELD, "\n".join(names))
    click(opened, "Classify")
    expected = names[probabilities(bench.bind(ZERO_SHOT, "\n".join(names)), PICTURE).argmax()]
    opened.wait_for(f"{LABELS}[0] == {json.dumps(expected)}", PATIENCE)
    opened.wait_for(f"{NOTES}[0].startsWith({json.dumps(expected)})", PATIENCE)
    assert opened.evaluate("document.querySelectorAll('.note b').length") == 0


def test_layer_and_kind_change_the_map(opened: Browser) -> None:
    before = opened.evaluate(NOTES)
    slider = "[...document.querySelectorAll('input[type=range]')][0]"
    opened.evaluate(f"{slider}.value = 2; {slider}.dispatchEvent(new Event('input', {{bubbles: true}})); 1")
    opened.evaluate(f"{slider}.dispatchEvent(new PointerEvent('pointerup', {{bubbles: true}})); 1")
    opened.wait_for(f"{NOTES}.every(x => x.includes('layers 2 to'))", PATIENCE)
    assert all("layers 1 to" in note for note in before)
    kind = "[...document.querySelectorAll('input[role=combobox]')][1]"
    opened.evaluate(f"{kind}.focus(); 1")
    opened.press("ArrowDown", "Enter")
    opened.wait_for(f"{NOTES}.length == 2 && {NOTES}.every(x => x.startsWith('layer '))", PATIENCE)
    assert not complaints(opened)


def test_an_adapter_of_ones_own_brings_its_classes(opened: Browser, files: dict) -> None:
    opened.choose_file("input[type=file][accept*=safetensors]", files["bias"])
    opened.wait_for(f"{NAMES_FIELD}.value == 'tree\\nhouse'", PATIENCE)
    opened.wait_for(f"{LABELS}.every(x => x == 'tree' || x == 'house')", PATIENCE)
    opened.wait_for(f"{NOTES}.length == 2 && {NOTES}.every(x => /^(tree|house): /.test(x))", PATIENCE)


def test_mistakes_are_told_on_the_page(opened: Browser, files: dict) -> None:
    write(opened, NAMES_FIELD, "")
    click(opened, "Classify")
    opened.wait_for(f"{TOAST} && {TOAST}.textContent.includes('there are 0 class names')", PATIENCE)
    opened.evaluate(f"{TOAST}.querySelector('button').click(); 1")
    opened.choose_file("input[type=file][accept*=safetensors]", files["other"])
    opened.wait_for(f"{TOAST} && {TOAST}.textContent.includes('does not fit')", PATIENCE)


def test_it_starts_with_a_picture_and_an_upload_button_in_sight(browser: Browser, clip: Clip, address: str) -> None:
    page = build(Bench(clip, {}))
    opened = serve(page, server_name="127.0.0.1", prevent_thread_lock=True)
    browser.open(opened, width=1280, height=800)
    browser.wait_for(f"{NOTES}.length == 1", PATIENCE)
    assert browser.evaluate("document.querySelectorAll('img').length") >= 1 + PICTURES
    assert browser.evaluate(f"{NAMES_FIELD}.value").startswith("airplane\napple\n")
    button = "[...document.querySelectorAll('button')].find(x => x.textContent.trim() == 'Upload a picture')"
    assert 0 < browser.evaluate(f"{button}.getBoundingClientRect().bottom") <= 800
    page.close(verbose=False)


def test_it_fits_a_phone(browser: Browser, address: str) -> None:
    browser.open(address, width=390, height=844)
    browser.wait_for("document.querySelectorAll('input[type=range]').length == 2", PATIENCE)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
