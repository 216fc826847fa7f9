"""An ONNX file gives the adapter's logits: in ONNX Runtime, by the programs of the page and the card, and in a browser.

`.ci/onnx` fetches onnxruntime-web for the browser; elsewhere that test is skipped.
"""

import contextlib
import functools
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.export import export, onnx_file
from clipbias.export.program import program_weights
from tests import families, helpers
from tests.browser import Browser
from tests.documents import ROOT
from tests.export import models

WEB = "ONNXRUNTIME_WEB"  # the folder `dist` of the package onnxruntime-web
METHODS = [
    *("gda", "ivlp", "vpt", "maple", "bias", "bias_by_kind", "clip_lora", "taskres", "clip_adapter", "mma", "mmrl"),
    *("plot", "prolip", "tip_adapter", "two_stage", "visual_prompting"),
]


@pytest.fixture(scope="module")
def exported(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `workdir/export/onnx` of IVLP, and `picture.png`, which needs no resizing, beside `workdir`."""
    root = tmp_path_factory.mktemp("onnx")
    export(models.adapter(clip, "ivlp", root), clip, root / "workdir/export/onnx", form="onnx")
    Image.fromarray(models.pictures(clip)[0]).save(root / "picture.png")
    return root


def expected(clip: Clip, folder: Path) -> np.ndarray:
    return models.logits(clip, models.adapter(clip, "ivlp", folder), models.pictures(clip)[:1])[0]


@pytest.mark.ci
@pytest.mark.parametrize("method", helpers.short(METHODS, METHODS[0]))
def test_the_file_gives_jaxs_logits_for_any_batch_size(clip, tmp_path, method):
    adapter = models.adapter(clip, method, tmp_path)
    assert export(adapter, clip, tmp_path / "out", form="onnx", own_methods=(method,)) == "onnx"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "classifier.onnx")
    images = models.pictures(clip)
    logits = models.logits(clip, adapter, images)
    for count in (4, 1, 3):
        models.assert_close(session.run(["logits"], {"images": images[:count]})[0], logits[:count], onnx_file.TOLERANCE)
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["class_names"] == list(models.CLASS_NAMES)
    assert 0 < labels["check"]["largest_difference"] < onnx_file.TOLERANCE * labels["check"]["largest_logit"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("classifier.onnx", "labels.json", "adapter.safetensors", "README.md")
    }


@pytest.mark.ci
@pytest.mark.parametrize("family", helpers.short(["pe", "siglip", "metaclip_2", "biomed_clip"], "pe", "siglip"))
def test_other_families_towers(tmp_path, family):
    """Rotary positions, attention pooling, and the exact GELU."""
    model = families.reference(family, 1, tmp_path)
    task = families.task_of(model, "ivlp")
    learnables = models.learned(task, families.ADDED)
    session = onnxruntime.InferenceSession(onnx_file.convert(task, program_weights(task, learnables)))
    images = models.pictures(model.clip)
    expected = models.task_logits(task, learnables, images)
    models.assert_close(session.run(["logits"], {"images": images})[0], expected)


@pytest.mark.ci
def test_a_file_that_computes_something_else_is_not_left(clip, tmp_path, monkeypatch):
    adapter = models.adapter(clip, "bias", tmp_path)
    original = onnx_file.classify
    monkeypatch.setattr(onnx_file, "classify", lambda *args: original(*args) * 1.001)
    with pytest.raises(ClipbiasError, match=r"logits differ from JAX's by .* Export the adapter as a program"):
        export(adapter, clip, tmp_path / "out", form="onnx")
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 10)
    with pytest.raises(ClipbiasError, match="an ONNX file holds at most 2; export the adapter as a program"):
        export(adapter, clip, tmp_path / "out", form="onnx")
    monkeypatch.undo()

    monkeypatch.setattr(onnx_file, "classify", lambda *args: jnp.sort(original(*args)))
    refused = "'bias' cannot become an ONNX file: JAX's operation 'sort' has no translation.*; export it as a program"
    with pytest.raises(ClipbiasError, match=refused):
        export(adapter, clip, tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.ci
def test_the_program_of_the_card(clip: Clip, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported / "workdir/export/onnx"
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[:1]
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code.replace("image.png", "../../../picture.png"), names)
    models.assert_close(names["logits"][0], expected(clip, tmp_path), onnx_file.TOLERANCE)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line for each request."""

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(WEB not in os.environ, reason="onnxruntime-web is not there")
def test_the_page_in_a_browser(clip, exported, tmp_path):
    """It loads nothing from elsewhere but ONNX Runtime, which stands beside it here."""
    folder = exported / "workdir/export/onnx"
    code = (ROOT / "docs" / "browser" / "index.html").read_text(encoding="utf-8")
    (address,) = re.findall(r'"(https://[^"]*/dist)/', code)
    (folder / "index.html").write_text(code.replace(address, "./dist"))
    (folder / "dist").symlink_to(os.environ[WEB])
    (folder / "picture.png").write_bytes((exported / "picture.png").read_bytes())
    (folder / "favicon.ico").touch()  # which a browser asks for
    picture = "createImageBitmap(await (await fetch('picture.png')).blob())"
    browser = Browser(tmp_path / "profile", local=True)
    try:
        with served(folder) as place:
            browser.open(f"{place}/index.html")
            browser.wait_for("window.classify")
            logits = browser.evaluate(f"(async () => Array.from(await classify(await {picture})))()")
            assert browser.complaints == [] and all(request.startswith(place) for request in browser.requests)
    finally:
        browser.close()
    models.assert_close(np.array(logits), expected(clip, tmp_path), onnx_file.TOLERANCE)
