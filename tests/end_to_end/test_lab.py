"""The whole work of a lab in miniature: three sweeps, the causal test, and rows made anew."""

import json

import pytest

import experiments.lab
from clipbias.settings import from_config
from configs import lab as settings
from tests.end_to_end import binaries
from tools import recompute

SWEEPS = ["base_to_new", "few_shot", "most_shots"]
SMALL = {
    "model": "demo",
    "datasets": ("demo/fashion",),
    "methods": ("zero_shot", "bias"),
    "base_to_new": ("zero_shot", "bias"),
    "shots": (2, 16),
    "seeds": (1,),
    "more_seeds": (1,),
    "epochs": 1,
    "causal_images": 24,
    "dtype": "float32",
    "eval_batch_size": 300,
}


def test_the_sweeps_of_the_eleven_datasets():
    sweeps = experiments.lab.stages(from_config(settings.LabSettings, settings.get_config()))
    assert {name: (len(stage.methods), stage.shots, stage.seeds, stage.protocol) for name, stage in sweeps.items()} == {
        "few_shot": (13, (1, 2, 4, 8), (1, 2, 3), "few_shot"),  # zero-shot CLIP sees no images
        "most_shots": (14, (16,), (1, 2, 3, 4, 5), "few_shot"),
        "base_to_new": (11, (16,), (1, 2, 3), "base_to_new"),
    }


@pytest.mark.long
def test_a_lab_in_miniature(tmp_path):
    workdir = tmp_path / "lab"
    binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert sorted(path.parent.name for path in workdir.glob("*/results.jsonl")) == SWEEPS
    study = workdir / "why" / "demo_fashion"
    models = json.loads((study / "results.json").read_text())["models"]
    assert [model["method"] for model in models] == ["zero_shot", "bias"]
    before = {path: path.stat().st_mtime_ns for path in [*workdir.glob("*/adapters/*"), study / "results.json"]}
    binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    assert recompute.main([str(workdir / name) for name in SWEEPS]) == 0
    path = workdir / "few_shot" / "results.jsonl"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    assert recompute.main([str(path.parent)]) == 1


def test_a_part_waits_for_the_adapters_of_others(tmp_path):
    config = settings.get_config("demo")
    (sentence,) = experiments.lab.causal_tests(from_config(settings.LabSettings, config), tmp_path)
    assert sentence.startswith("the causal test on demo/fashion lacks 4 adapters")
