"""The page in a browser: what it shows is what the library says, and nothing is asked of any other machine.

gradio needs an environment of its own, so `.ci/app` runs these; elsewhere they are skipped.
"""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipbias.app import LIKELIEST, MOST_EXAMPLES, NO_ADAPTER, STARTING, Bench, build, classify, serve
from clipbias.report import style
from tests.app import NAMES, PICTURE
from tests.browser import Browser

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own, of what it is built on

# What stands in the lists of probabilities, below them, and in the fields.
SHARES = "[...document.querySelectorAll('.confidence-set')].map(x => x.textContent.replace(/\\s+/g, ' ').trim())"
MAPS = "[...document.querySelectorAll('.map img')].filter(x => x.naturalWidth > 400)"
SET = "[...document.querySelectorAll('*')].find(x => !x.children.length && x.textContent.includes('90 % set'))"
NAMES_FIELD = "document.querySelectorAll('textarea')[0]"
ADAPTER = "[...document.querySelectorAll('input')].find(x => x.ariaLabel == 'Tuned adapter')?.value"
TOAST = "document.querySelector('.toast-body')"
# Images without words, and buttons that neither text nor an image names.
UNNAMED = """[...document.querySelectorAll('img'), ...document.querySelectorAll('button')].filter(x => x.offsetParent &&
  !x.alt && !x.innerText?.trim() && !x.ariaLabel && !x.title && !x.querySelector('img')?.alt).map(x => x.outerHTML)"""
UPLOAD = "input[type=file][accept*=image]"
PATIENCE = 600  # seconds, for programs that are compiled while somebody waits
# Whether the picture in the left half of a map is a bright picture.
BRIGHT = """(map => {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [100, 100];
  const context = canvas.getContext('2d');
  context.drawImage(map, 0, 0, 100, 100);
  const levels = context.getImageData(10, 20, 25, 25).data;
  return levels.reduce((a, b) => a + b) / levels.length > 160;
})"""


def shown(bench: Bench, picture: np.ndarray, names: list[str] = NAMES, adapter: str = "prompts") -> str:
    """A script that is true where both lists hold a picture's probabilities."""
    rows = []
    for name in (NO_ADAPTER, adapter):
        shares = classify(bench.bind(name, "\n".join(names)), picture)[0]
        rows += [f"{key} {100 * shares[key]:.0f}%" for key in sorted(shares, key=lambda key: -shares[key])]
    return f"{SHARES}.join() == {json.dumps(','.join(rows))}"


def write(browser: Browser, field: str, text: str) -> None:
    """Replaces what a field holds, as somebody who types would."""
    browser.evaluate(
        f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}})); 1"
    )


def click(browser: Browser, words: str) -> None:
    button = f"[...document.querySelectorAll('button')].find(x => x.textContent.trim() == {words!r})"
    browser.evaluate(f"{button}.click(); 1")


def upload(browser: Browser, path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path)
    browser.choose_file(UPLOAD, path)


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    """Without a picture."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(address, width=1400, height=1000)
    browser.wait_for(f"document.querySelector({UPLOAD!r})", PATIENCE)
    return browser


@pytest.fixture
def opened(page: Browser, bench: Bench, tmp_path: Path) -> Browser:
    """With a picture."""
    upload(page, tmp_path / "photo.png", PICTURE)
    page.wait_for(f"{MAPS}.length == 2 && {shown(bench, PICTURE)}", PATIENCE)
    return page


def test_what_the_page_does_when_it_is_asked(bench, files, tmp_path):
    """Its functions, called as gradio calls them, without a browser."""
    events: dict[str, Any] = {event.fn.__name__: event.fn for event in build(bench).fns.values() if event.fn}
    Image.fromarray(PICTURE).save(path := str(tmp_path / "photo.png"))
    question = (path, "\n".join(NAMES), "a photo of a {}.")
    *answers, classes = events["answer"](*question, "prompts", NAMES[1])
    for number, name in enumerate((NO_ADAPTER, "prompts")):
        side = bench.bind(name, *question[1:])
        shares, words, drawn = answers[3 * number : 3 * number + 3]
        expected = [classify(side, PICTURE, of_class) for of_class in NAMES[:2]]
        assert (shares, words) == expected[1][:2]
        assert drawn == expected[1][2] != expected[0][2]
    assert classes["choices"] == [LIKELIEST, *NAMES] and "value" not in classes
    *answers, classes = events["answer"](*question, NO_ADAPTER, "a class of other names")
    assert answers[3:] == [None, "", None] and classes["value"] == LIKELIEST
    assert events["answer"](None, *question[1:], "prompts", LIKELIEST)[:6] == (None, "", None) * 2
    choice, *others, uploaded = events["select"](NO_ADAPTER, [])
    assert others == [choice] * 2 and uploaded == []  # nothing changes
    # An answer may wait for the first of two files while the second is chosen.
    choices = events["select"](files["bias"], events["select"](files["shapes"], [])[-1])[0]["choices"]
    assert [name for name, _ in choices[2:]] == ["shapes.safetensors", "bias.safetensors"]


def test_a_picture_is_classified_both_ways(opened, address):
    opened.wait_for(SET, PATIENCE)
    opened.wait_for(f"!document.body.innerText.includes({STARTING!r})", 10)
    assert opened.evaluate(UNNAMED) == []
    assert opened.requests
    assert not [url for url in opened.requests if not url.startswith((address, "data:", "blob:"))]
    # gradio's own list of pictures writes this to the console.
    assert not [line for line in opened.complaints if "Method not implemented" not in json.dumps(line)]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """That a map is to be drawn, and that it may be."""
    begun, allowed, draw = threading.Event(), threading.Event(), style.png_bytes

    def drawn_late(figure: Any) -> bytes:
        begun.set()
        assert allowed.wait(PATIENCE)
        return draw(figure)

    monkeypatch.setattr(style, "png_bytes", drawn_late)
    return begun, allowed


def test_probabilities_and_maps_are_of_the_same_picture(page, bench, tmp_path, drawing):
    """A second picture comes while the maps of the first are drawn."""
    begun, allowed = drawing
    bright = 255 - PICTURE // 4
    upload(page, tmp_path / "dark.png", PICTURE // 4)
    assert begun.wait(PATIENCE)
    upload(page, tmp_path / "bright.png", bright)
    page.wait_for("document.querySelector('img[src*=bright]')", PATIENCE)
    assert page.evaluate(f"{SHARES}.length") == 0
    allowed.set()
    page.wait_for(shown(bench, bright), PATIENCE)
    page.wait_for(f"{MAPS}.length == 2 && {MAPS}.every({BRIGHT})", 10)


def test_other_names_and_a_name_that_is_markup(opened, bench):
    names = ["<b>star</b>", "moon"]
    write(opened, NAMES_FIELD, "\n".join(names))
    click(opened, "Classify")
    opened.wait_for(shown(bench, PICTURE, names), PATIENCE)


def test_an_uploaded_adapter_has_its_classes_and_its_name(opened, bench, files, drawing):
    """The last of two counts, both of which come while maps are drawn; an adapter that does not fit is none."""
    begun, allowed = drawing
    field = "input[type=file][accept*=safetensors]"
    assert opened.evaluate(ADAPTER) == "prompts"
    click(opened, "Classify")
    assert begun.wait(PATIENCE)
    opened.choose_file(field, files["shapes"])
    opened.wait_for(f"{ADAPTER} == 'shapes.safetensors'", PATIENCE)
    opened.choose_file(field, files["bias"])
    opened.wait_for(f"{ADAPTER} == 'bias.safetensors' && {NAMES_FIELD}.value == 'tree\\nhouse'", PATIENCE)
    allowed.set()
    opened.wait_for(shown(bench, PICTURE, ["tree", "house"], str(files["bias"])), PATIENCE)
    opened.choose_file(field, files["other"])
    opened.wait_for(f"{TOAST} && {TOAST}.textContent.includes('does not fit')", PATIENCE)
    assert opened.evaluate(ADAPTER) == "bias.safetensors"


def test_mistakes_are_told_on_the_page(browser, clip, tmp_path):
    """A broken picture in place of another that stood there, without the folders of the server; and no names."""
    page = build(Bench(clip, {}))
    browser.open(serve(page, server_name="127.0.0.1", prevent_thread_lock=True), width=1280, height=800)
    browser.wait_for(f"document.body.innerText.includes({STARTING!r})", PATIENCE)
    browser.wait_for(f"{MAPS}.length == 1", PATIENCE)
    assert browser.evaluate(UNNAMED) == []
    assert browser.evaluate("document.querySelectorAll('img').length") >= 1 + MOST_EXAMPLES
    assert browser.evaluate(f"{NAMES_FIELD}.value").startswith("airplane\napple\n")
    before = browser.evaluate(f"{SHARES}.join()")
    browser.evaluate("document.querySelectorAll('.gallery-item')[1].click(); 1")
    browser.wait_for(f"{SHARES}.length == 5 && {SHARES}.join() != {json.dumps(before)}", PATIENCE)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    browser.choose_file(UPLOAD, tmp_path / "broken.png")
    browser.wait_for(TOAST, PATIENCE)
    message = browser.evaluate(f"{TOAST}.textContent")
    assert "the image broken.png cannot be decoded" in message and "/" not in message
    browser.wait_for(f"{MAPS}.length == 0 && {SHARES}.length == 0", PATIENCE)
    assert browser.evaluate(f"{TOAST}.textContent").count("cannot be decoded") == 1
    page.close(verbose=False)
