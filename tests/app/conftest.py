"""One server and one browser for all tests of the page."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import clipbias
from clipbias.app import NO_ADAPTER, Bench, build, classify, serve
from clipbias.clip import Clip
from clipbias.tuning.conformal import Calibration
from tests.app import NAMES, PICTURE, tuned
from tests.browser import Browser


@pytest.fixture(scope="session")
def bench(clip: Clip) -> Bench:
    """With a tuned model that is calibrated by twelve times the same picture."""
    model = tuned(clip, "ivlp", NAMES)
    logits = model.predict([PICTURE]).logits
    scores = Calibration.of(np.repeat(logits, 12, 0), np.full(12, logits[0].argmax()), 14.0)
    return Bench(clip, {"prompts": dataclasses.replace(model, calibration=scores)})


@pytest.fixture(scope="session")
def files(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two adapters, and one of another model."""
    folder = tmp_path_factory.mktemp("given")
    tuned(bench.clip, "bias", ["tree", "house"]).save(folder / "bias.safetensors")
    tuned(bench.clip, "bias", ["circle", "square"], seed=2).save(folder / "shapes.safetensors")
    tuned(clipbias.load("demo"), "bias", ["tree", "house"]).save(folder / "other.safetensors")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def address(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradio's own, of what it is built on
        for name in (NO_ADAPTER, "prompts"):  # compiled before it is asked
            classify(bench.bind(name, "\n".join(NAMES)), PICTURE)
        page = build(bench)
        yield serve(page, server_name="127.0.0.1", prevent_thread_lock=True)
        page.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened_browser = Browser(tmp_path_factory.mktemp("profile"), local=True)
    yield opened_browser
    opened_browser.close()
