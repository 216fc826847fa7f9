"""The page in a browser: what it shows is what the library says, and nothing is asked of any other machine.

gradio needs an environment of its own, so `.ci/app` runs these; elsewhere they are skipped.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from clipbias.app import Bench, write_space
from clipbias.errors import ClipbiasError
from clipbias.tuning.adapter import load_adapter
from tests.app.adapters import NAMES, PICTURE
from tests.browser import Browser

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own, of what it is built on

# What stands in the two lists of probabilities, and in the fields.
LABELS = "[...document.querySelectorAll('[data-testid=label-output-value]')].map(x => x.textContent.trim())"
SHARES = "[...document.querySelectorAll('.confidence-set .text')].map(x => x.textContent.trim())"
NOTES = "[...document.querySelectorAll('.note')].map(x => x.textContent.trim())"
WORDS = "[...document.querySelectorAll('.words')].map(x => x.textContent.trim())"
NAMES_FIELD = "document.querySelectorAll('textarea')[0]"
PATIENCE = 600  # seconds, for programs that are compiled while somebody waits
TOAST = "document.querySelector('.toast-body')"


@pytest.fixture
def opened(browser: Browser, address: str, tmp_path: Path) -> Browser:
    """With a picture that was chosen."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(address, width=1280, height=1000)
    browser.wait_for("document.querySelector('input[type=file]')", PATIENCE)
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    browser.choose_file("input[type=file]", tmp_path / "photo.png")
    browser.wait_for(f"{NOTES}.length == 2", PATIENCE)
    return browser


def complaints(browser: Browser) -> list:
    """What the page complains of, but for what gradio's own examples write to the console."""
    return [one for one in browser.complaints if "Method not implemented" not in json.dumps(one)]


def write(browser: Browser, field: str, text: str) -> None:
    """Replaces what a field holds, as somebody who types would."""
    browser.evaluate(
        f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}})); 1"
    )


def click(browser: Browser, words: str) -> None:
    found = f"[...document.querySelectorAll('button')].find(x => x.textContent.trim() == {words!r})"
    browser.evaluate(f"{found}.click(); 1")


def test_a_picture_is_classified_both_ways(opened: Browser, bench: Bench, address: str) -> None:
    sides = [bench.zero_shot(NAMES), bench.tuned(bench.adapters["prompts"], NAMES)]
    found = [side.probabilities(PICTURE) for side in sides]
    assert opened.evaluate(LABELS) == [NAMES[p.argmax()] for p in found]
    shown = " ".join(opened.evaluate(SHARES))
    assert all(name in shown for name in NAMES)
    looked = [bench.look(side, PICTURE, int(p.argmax())) for side, p in zip(sides, found, strict=True)]
    assert opened.evaluate(NOTES) == [f"{NAMES[p.argmax()]}: {one.note}" for p, one in zip(found, looked, strict=True)]
    assert opened.evaluate(WORDS) == [" ".join(word for word, _ in one.words) for one in looked]
    assert opened.requests
    assert not [url for url in opened.requests if not url.startswith((address, "data:", "blob:"))]
    assert not complaints(opened)


def test_other_names_and_a_name_that_is_markup(opened: Browser, bench: Bench) -> None:
    names = ["<b>star</b>", "moon"]
    write(opened, NAMES_FIELD, "\n".join(names))
    click(opened, "Classify")
    expected = names[bench.zero_shot(names).probabilities(PICTURE).argmax()]
    opened.wait_for(f"{LABELS}[0] == {json.dumps(expected)}", PATIENCE)
    opened.wait_for(f"{NOTES}[0].startsWith({json.dumps(expected)})", PATIENCE)
    assert opened.evaluate("document.querySelectorAll('.words b, .note b').length") == 0


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
    assert "on prompts" not in "".join(opened.evaluate(NOTES))


def test_mistakes_are_told_on_the_page(opened: Browser, files: dict) -> None:
    write(opened, NAMES_FIELD, "")
    click(opened, "Classify")
    opened.wait_for(f"{TOAST} && {TOAST}.textContent.includes('there are no class names')", PATIENCE)
    opened.evaluate(f"{TOAST}.querySelector('button').click(); 1")
    opened.choose_file("input[type=file][accept*=safetensors]", files["other"])
    opened.wait_for(f"{TOAST} && {TOAST}.textContent.includes('does not fit')", PATIENCE)


def test_it_fits_a_phone(browser: Browser, address: str) -> None:
    browser.open(address, width=390, height=844)
    browser.wait_for("document.querySelectorAll('input[type=range]').length == 2", PATIENCE)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_space_has_all_that_it_needs(files: dict, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photo)
    write_space(tmp_path / "space", "demo", [files["other"]], [photo], class_names=["tree", "house"])
    header = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["models"] == []
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("clipbias[app]==")
    copied = load_adapter(tmp_path / "space" / "adapters" / "other.safetensors")
    assert copied.class_names == ("tree", "house")
    made = runpy.run_path(str(tmp_path / "space" / "app.py"))
    assert [*made["ADAPTERS"]] == ["other"] and "textbox" in str(made["page"].get_config_file())
    with pytest.raises(ClipbiasError, match="upload it to the Hugging Face hub"):
        write_space(tmp_path / "other", str(tmp_path), [])
