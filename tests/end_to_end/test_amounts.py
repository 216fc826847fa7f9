"""The binary `amounts` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

import clipbias
import experiments.amounts
from clipbias.report.runs import read_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import save_adapter
from tests.end_to_end.binaries import assert_recorded, refusal_here, succeed_here


def write_adapter(model: Path, folder: Path, method: str) -> Path:
    """An adapter that was never trained, of the classes of a demo dataset."""
    task = Task(clipbias.load(model), method, clipbias.data.load("demo/fashion").class_names)
    draw = np.random.default_rng(0)
    learnables = {name: draw.normal(0, 0.3, np.shape(x)).astype("f") for name, x in task.init().items()}
    path = folder / f"{method}.safetensors"
    save_adapter(path, task, learnables, notes={"dataset": "demo/fashion", "seed": 1})
    return path


def test_an_adapter_is_replaced_and_used(model: Path, tmp_path: Path) -> None:
    path, out = write_adapter(model, tmp_path, "vpt"), tmp_path / "out"
    few = {"amounts_images": 20, "image_limit": 30}
    printed, _ = succeed_here(experiments.amounts, {"adapter": str(path), **few}, out)
    assert "vpt on demo/fashion: " in printed and str(out / "adapter.safetensors") in printed
    assert_recorded(out, "result.json", "adapter.safetensors")
    result = json.loads((out / "result.json").read_text())
    assert (result["images"], result["training_images"], result["kind"]) == (30, 20, "vector")
    assert result["accuracy"] == result["accuracies"]["vector"]
    (run,) = read_workdir(out)
    assert (run.binary, run.state, run.method) == ("amounts", "finished", "vpt")
    # What was written is an adapter as any other: what it amounts to is itself.
    again = tmp_path / "again"
    succeed_here(experiments.amounts, {"adapter": str(out), **few}, again)
    found = json.loads((again / "result.json").read_text())
    assert found["method"] == "bias"
    assert found["accuracies"]["vector"] == found["accuracies"]["tuned"] == result["accuracies"]["vector"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no adapter; give --config.adapter"),
        ({"adapter": "taskres"}, "taskres amounts to no bias: Neither tokens nor weights"),
        ({"adapter": "taskres", "kind": "token"}, "'token'"),
    ],
)
def test_what_it_refuses(settings: dict, message: str, model: Path, tmp_path: Path) -> None:
    if "adapter" in settings:
        settings = settings | {"adapter": str(write_adapter(model, tmp_path, "taskres"))}
    assert message in refusal_here(experiments.amounts, settings, tmp_path / "out")
