"""The whole work of a lab in miniature: the plan, three sweeps, the causal test, the bundle and its check."""

import json
from pathlib import Path

import pytest

import clipbias
import experiments.bundle
import experiments.lab
from clipbias.bundles.check import check_bundle
from clipbias.bundles.files import LARGEST, read_bundle
from clipbias.bundles.write import find_sweeps
from configs import lab as settings
from tests.end_to_end import binaries
from tools import check_bundle as tool

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


def test_the_plan_of_the_eleven_datasets() -> None:
    config = settings.get_config()
    config.model = "demo"
    few, most, new, total, host, _, *files, size = experiments.lab.describe_plan(config)
    # 13 methods that draw images, on 11 datasets: 4 numbers of shots with 3 seeds, 16 shots with 5, base-to-new with 3.
    for line, runs in ((few, 13 * 11 * 4 * 3), (most, 13 * 11 * 5 + 11), (new, 10 * 11 * 3 + 11)):
        assert f": {runs:,} runs in " in line
    assert f"in all: {13 * 11 * 17 + 10 * 11 * 3 + 22:,} runs" in total and "imagenet's 50,000 test images" in host
    assert len(files) == 11 and files[0].startswith("bundle: imagenet.npz, 253 runs, at most ")
    bounds = [float(line.rpartition("at most ")[2].split()[0]) * 1e6 for line in files]
    assert all(bound < LARGEST for bound in bounds) and f"{sum(bounds) / 1e6:.0f} MB" in size


@pytest.mark.long
def test_a_lab_in_miniature(tmp_path: Path) -> None:
    workdir, output = tmp_path / "lab", tmp_path / "results" / "mine"
    printed, _ = binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert "in all: 5 runs" in printed
    assert [path.name for path in find_sweeps([workdir])] == ["base_to_new", "few_shot", "most_shots"]
    study = workdir / "why" / "demo_fashion"
    models = json.loads((study / "results.json").read_text())["models"]
    assert [model["method"] for model in models] == ["zero_shot", "bias"]
    before = {path: path.stat().st_mtime_ns for path in [*workdir.glob("*/adapters/*"), study / "results.json"]}
    binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    packed = {"runs": str(workdir), "output": str(output)}
    assert "demo_fashion.npz" in binaries.succeed_here(experiments.bundle, packed)[0]
    bundle = read_bundle(output)
    assert len(bundle.lines) == 5 and all(line["adapter"] for line in bundle.lines if line["parameters"])
    line = next(line for line in bundle.lines if line["method"] == "bias")
    conditions, size = line["conditions"], clipbias.load("demo").preprocessing.image_size
    assert (conditions["validation"], conditions["recipe"], conditions["resolution"]) == ("none", "common", size)
    assert "centre crop" in conditions["crop"] and "{}" in conditions["zero_shot_text"]
    found = check_bundle(bundle, output)
    assert found.differs == [] and len(found.recomputed) == 5
    assert tool.main([str(output)]) == 0
    (output / "photo.jpg").write_text("")
    assert tool.main([str(output)]) == 1
    assert "exists already" in binaries.refusal_here(experiments.bundle, packed)


def test_a_part_waits_for_the_adapters_of_others(tmp_path: Path) -> None:
    config = settings.get_config("demo")
    (told,) = experiments.lab.causal_tests(config, tmp_path)
    assert told.startswith("the causal test on demo/fashion lacks 4 adapters")
