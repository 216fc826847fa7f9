"""The Python of the pages that no other test runs: sharing, methods of one's own, the page in the browser."""

from pathlib import Path

import numpy as np
import pytest

import clipbias
from clipbias import TunedModel, app, data
from clipbias.clip import Clip
from tests.documents import ROOT, blocks

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def demo() -> Clip:
    return clipbias.load("demo")


def snippet(page: str, words: str) -> str:
    """The block of Python of a page that holds these words."""
    (code,) = [code for code in blocks(ROOT / "docs" / page, "python") if words in code]
    return code


def fresh(demo: Clip, method: str, path: Path) -> TunedModel:
    """A model as it starts, saved."""
    task = clipbias.Task(demo, method, ["waves", "stripes"])
    model = TunedModel(task, task.init())
    model.save(path)
    return model


def test_other_classes(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh(demo, "ivlp", tmp_path / "workdir/demo/adapters/ivlp-demo_fashion-16shots-seed1.safetensors")
    names: dict = {"clipbias": clipbias}
    exec(snippet("export.md", "with_classes"), names)
    prediction = names["shapes"].predict(np.zeros((1, 48, 48, 3), np.uint8))
    assert prediction.class_names == ("circle", "square", "star")


def test_a_space(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "build", lambda bench: bench)  # gradio need not be there
    fresh(demo, "bias", tmp_path / "bias.safetensors")
    names: dict = {"__name__": "app"}
    exec(snippet("app.md", "app.build"), names)
    assert names["page"].models["bias"].clip is names["clip"]


def test_prediction_sets():
    names: dict = {}
    exec(snippet("answers.md", "prediction.sets"), names)
    assert len(names["prediction"].sets) == 1 and names["prediction"].rejected.shape == (1,)
    assert names["model"].calibration is not None and len(names["model"].calibration) == 200


@pytest.mark.filterwarnings("ignore:the tuned model is no better")
def test_a_method_of_ones_own(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "low_rank.py").write_text(snippet("methods.md", "vision_left"), encoding="utf-8")
    few = data.load("demo/digits")
    names: dict = {"clipbias": clipbias, "clip": demo, "dataset": few}
    code = snippet("methods.md", '"low_rank.py", dataset').replace(
        "rank=2", "rank=2, learning_rate=0.05, epochs=1, progress=False"
    )
    exec(code, names)
    names["model"].save(tmp_path / "own.safetensors")
    again = clipbias.load_adapter(tmp_path / "own.safetensors", demo, own_methods=["low_rank.py"])
    assert again.task.options() == {"rank": 2}
