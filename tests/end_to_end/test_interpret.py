"""The binary `interpret` as a user runs it."""

import json
from pathlib import Path

import numpy as np

import clipbias
import experiments.interpret
from clipbias.report.runs import read_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import save_adapter
from tests import helpers
from tests.end_to_end.binaries import assert_recorded, refusal_here, succeed_here


def write_adapters(model: Path, folder: Path) -> Path:
    """Adapters of two methods, datasets and seeds, laid out as a grid leaves them."""
    clip = clipbias.load(model)
    for method in ("bias", "ivlp"):
        for dataset in ("demo/digits", "demo/fashion"):
            task = Task(clip, method, ("cat", "dog"))
            for seed in (1, 2):
                draw = np.random.default_rng([seed, len(dataset)])
                learnables = {name: draw.normal(0, 0.3, np.shape(x)).astype("f") for name, x in task.init().items()}
                path = folder / "adapters" / f"{method}-{dataset[5:]}-seed{seed}.safetensors"
                save_adapter(path, task, learnables, notes={"dataset": dataset, "seed": seed})
    return folder


def test_a_grid_is_interpreted(model: Path, tmp_path: Path) -> None:
    grid, out = write_adapters(model, tmp_path / "grid"), tmp_path / "out"
    settings = {"adapters": f"{grid},{grid}/adapters/bias-*", "deeper": True, "images": 2}
    printed, _ = succeed_here(experiments.interpret, settings, out)
    assert printed.count(" points in ") == 4 and str(out / "interpretation.html") in printed
    assert_recorded(out, "interpretation.json", "interpretation.html", "words.csv", "norms.csv")
    found = json.loads((out / "interpretation.json").read_text())
    assert len(found["adapters"]) == 8  # those that were named twice count once
    assert all(row["tokens_norm"] > 0 for row in found["norms"])
    assert {entry["layer"] for entry in found["words"]} == {0, 1, 2}
    (run,) = read_workdir(out)
    assert (run.binary, run.state) == ("interpret", "finished")
    assert (run.method, run.dataset, run.seed) == (["bias", "ivlp"], ["demo/digits", "demo/fashion"], [1, 2])


def test_adapters_of_two_models_are_refused(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    helpers.tiny_checkpoint(other, seed=1)
    first, second = write_adapters(model, tmp_path / "a"), write_adapters(other, tmp_path / "b")
    said = refusal_here(experiments.interpret, {"adapters": f"{first},{second}"}, tmp_path / "out")
    assert "the adapters belong to 2 base models" in said
