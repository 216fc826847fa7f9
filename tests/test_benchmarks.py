"""`tools.benchmarks`: what the commands measure and print."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.explain.results import SECTIONS, Findings
from clipbias.io import write_tensors
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import (
    model,
    relevancy,
    report,
    steps,
    study,
    training,
    worker,
)

CONFIG = model.geometry("tiny")
SMALL = ["--geometry=tiny", "--classes=6", "--batch=2", "--repeats=1"]


@pytest.fixture(scope="module")
def clip():
    return model.random_clip(CONFIG)


def test_class_names_are_distinct_and_as_long_as_imagenets(clip):
    names = model.class_names(1000)
    assert len(set(names)) == 1000
    lengths = np.bincount([len(ids) for ids in clip.tokenizer(names)["input_ids"]])
    assert {n: int(count) for n, count in enumerate(lengths) if count} == model.NAME_LENGTHS


def test_a_step_beside_that_of_another_method(capsys):
    assert benchmark.main(["train", *SMALL, "--method=bias_by_kind", "--beside=bias"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["beside"] == "bias" and result["beside_flop"] == result["flop"] > 0
    assert result["times_the_step_beside"] == pytest.approx(result["seconds"] / result["beside_seconds"])


@pytest.mark.parametrize("command", ["train", "features"])
def test_the_last_line_is_one_json_object(command, capsys, tmp_path):
    written = tmp_path / "lines.jsonl"
    assert benchmark.main([command, *SMALL, "--baseline", f"--append={written}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(written.read_text())
    assert result["flop"] > 0 and result["peak_bytes"] > 0
    assert result["share_of_matmul"] == pytest.approx(
        result["flop"] / result["seconds"] / result["matmul_flop_per_second"]
    )
    if command == "train":
        assert result["loss"] == pytest.approx(result["plain_loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["vpt", "bias"])
def test_the_causal_test_is_timed_beside_both_models(method, capsys):
    assert benchmark.main(["causal", "--geometry=tiny", f"--method={method}", "--batch=2", "--repeats=1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    seconds = dict(result["seconds"])
    both = seconds.pop("both models")
    assert set(seconds) == {"mixtures"}
    assert result["forward_passes_of_both"] == pytest.approx(sum(seconds.values()) / both)
    assert result["bytes_per_image"] > 0


@pytest.mark.parametrize(
    ("given", "images", "left"), [("--images=6", (6, 6, 6, 6), set()), ("--quick", (24, 16, 0, 8), {"faithfulness"})]
)
def test_a_study_is_measured(capsys, monkeypatch, given, images, left):
    """With a study that only tells: what a whole one computes has tests of its own."""

    def run(asked, folder, *, sections, **_):
        assert [own.key for own in asked.models] == ["zero_shot", "ivlp", "bias"]
        options = asked.options
        asked_for = (options.images, options.training_images, options.control_images, options.explore_images)
        assert asked_for == images and options.faithfulness_images == images[0] // 2
        assert {*SECTIONS} - {*sections} == left
        jax.jit(lambda x: x + 3)(jnp.zeros(7))
        return Findings({}, {"models": [{"key": "zero_shot", "correct": 1, "images": 6}]})

    monkeypatch.setattr(study, "run_study", run)
    assert benchmark.main(["study", "--geometry=tiny", given]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["predicted"] == {"zero_shot": [1, 6]}
    assert found["programs"] >= 1 and found["seconds"] > 0 and found["compile_seconds"] > 0


def relevancy_points(capsys, *arguments):
    """The rows of `tools.benchmarks relevancy` on a tiny model, by way."""
    assert benchmark.main(["relevancy", "--geometry=tiny", "--batches=2", "--repeats=1", *arguments]) == 0
    printed = capsys.readouterr().out
    points = json.loads(printed.splitlines()[-1])["points"]
    assert all(f"| {point['way']} |" in printed for point in points)
    return points


def test_ways_to_relevancy_have_the_same_maps(capsys):
    ways = ["streaming", "plain", "forward"]
    points = relevancy_points(capsys, "--together", "--ways", *ways)
    assert [point["way"] for point in points] == ways
    for point in points:
        assert point["pairs_per_second"] == pytest.approx(2 / point["seconds"])
        assert point["program_bytes"] > 0 and point["matmul_flop_per_second"] > 0
    assert max(point["largest_difference"] for point in points[1:2]) < 2e-5
    assert points[-1]["largest_difference"] is None and points[-1]["flop"] < points[0]["flop"]


def test_torch_has_the_same_maps(capsys):
    """Only where PyTorch is installed."""
    pytest.importorskip("torch")
    points = relevancy_points(capsys, "--together", "--ways", "streaming", "torch", "torch-per-pair", "torch-forward")
    assert max(point["largest_difference"] for point in points[1:3]) < 2e-5


def test_a_way_has_a_process_of_its_own(capsys):
    (point,) = relevancy_points(capsys, "--ways", "recompute=2")
    assert 0 < point["before_bytes"] < point["peak_bytes"]
    assert point["needed_bytes"] == point["peak_bytes"] - point["before_bytes"]


def test_a_way_that_fails_says_why():
    job = {"way": "plain", "batch": 2, "module": "tools.benchmarks.nothing"}
    with pytest.raises(benchmark.ClipbiasError, match=r"plain at batch 2 failed: ModuleNotFoundError: .*nothing"):
        worker.Process(job)


def compared(capsys, method, *arguments):
    """The rows of `tools.benchmarks compare` on a tiny model, by way."""
    assert benchmark.main(["compare", *SMALL, f"--method={method}", "--together", *arguments]) == 0
    printed = capsys.readouterr().out
    points = {point["way"]: point for point in json.loads(printed.splitlines()[-1])["points"]}
    assert all(f"| {way} |" in printed and point["seconds"] > 0 for way, point in points.items())
    return points


def test_compare_takes_the_step_that_train_measures(capsys):
    (point,) = compared(capsys, "ivlp", "--ways=clipbias").values()
    assert benchmark.main(["train", *SMALL, "--method=ivlp"]) == 0
    assert point["loss"] == json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]


@pytest.mark.parametrize("method", ["ivlp", "clip_lora", "cocoop", "promptsrc", "bias", "coop", "vpt"])
def test_torch_takes_the_same_step(method, capsys):
    """Only where PyTorch is installed."""
    pytest.importorskip("torch")
    points = compared(capsys, method)
    assert "torch" in points and all(math.isfinite(point["loss"]) for point in points.values())
    if method in training.OWN_LEARNABLES:
        assert points["clipbias"]["loss"] == pytest.approx(points["torch"]["loss"], rel=1e-5)


def test_an_image_is_tested_with_its_views(capsys):
    """Beside PyTorch where that is installed; logits that differ would be refused."""
    points = compared(capsys, "tpt", "--option=crops=31")
    for point in points.values():
        assert point["cpu_seconds"] > 0 and "logits" not in point
    assert points["clipbias"]["program_bytes"] > 0


def test_other_logits_are_refused():
    training.check_logits("tpt", {"clipbias": [[1.0, -9.0]], "torch": [[1.005, -9.005]]})
    with pytest.raises(benchmark.ClipbiasError, match=r"tpt under clipbias and torch differ by up to 0.02.*being 9.0"):
        training.check_logits("tpt", {"clipbias": [[1.0, -9.0]], "torch": [[1.02, -9.0]]})


def test_other_losses_are_refused():
    training.check_losses("ivlp", {"clipbias": 1.0, "torch": 1.0005})
    with pytest.raises(benchmark.ClipbiasError, match=r"ivlp differ: 1.000000 \(clipbias\) and 1.010000 \(torch\)"):
        training.check_losses("ivlp", {"clipbias": 1.0, "torch": 1.01})
    with pytest.raises(benchmark.ClipbiasError, match="nan"):
        training.check_losses("ivlp", {"clipbias": 1.0, "torch": math.nan})


def test_planned_memory_by_depth(capsys):
    points = relevancy_points(capsys, "--layers", "2", "6", "--ways", "streaming", "recompute=5")
    size = {(point["way"], point["layers"]): point["program_bytes"] for point in points}
    assert size["streaming", 6] > 1.5 * size["streaming", 2]
    assert size["recompute=5", 6] - size["recompute=5", 2] < (size["streaming", 6] - size["streaming", 2]) / 4


def test_other_maps_are_refused(tmp_path):
    maps = {"vision": np.float32([[1, 4], [2, 1]]), "text": np.ones((2, 3), np.float32)}
    for way, factor in (("streaming", 1), ("plain", 1.0005), ("torch", 1.01)):
        changed = {name: np.float32(value * factor) for name, value in maps.items()}
        write_tensors(tmp_path / f"maps-{way}-2.safetensors", changed, {})
    assert relevancy.compare(tmp_path, ["streaming", "plain"], 2, "float32")["plain"] == pytest.approx(5e-4, rel=1e-2)
    assert relevancy.compare(tmp_path, ["streaming", "torch"], 2, "bfloat16")["torch"] == pytest.approx(0.01, rel=1e-2)
    with pytest.raises(benchmark.ClipbiasError, match="torch has other maps than streaming at batch 2"):
        relevancy.compare(tmp_path, ["streaming", "torch"], 2, "float32")


def test_report(capsys, tmp_path):
    row = dict(geometry="tiny", name="a step", seconds=2.0, flop=8e9, flop_per_second=4e9, share_of_matmul=0.5)
    row |= dict(matmul_flop_per_second=8e9, peak_bytes=3e9, plain_seconds=6.0, times_as_fast=3.0)
    older = row | {"seconds": 9.0}
    (tmp_path / "lines.jsonl").write_text(json.dumps(older) + "\n" + json.dumps(row) + "\n")
    arguments = ["report", str(tmp_path / "lines.jsonl"), f"--output={tmp_path / 'performance'}"]
    assert benchmark.main(arguments) == 0
    assert "| a step | 2.00 | 8 | 4 | 50 % | 3.00 | 6.00 | 3.00 |" in capsys.readouterr().out
    assert (tmp_path / "performance.md").exists() and (tmp_path / "performance.png").stat().st_size > 1000


def test_mistakes_are_one_sentence(capsys, tmp_path):
    assert benchmark.main(["train", "--geometry=ViT-X"]) == 1
    assert "choose one of tiny, ViT-B/32" in capsys.readouterr().err
    assert benchmark.main(["relevancy", "--ways", "backwards"]) == 1
    assert "there is no way 'backwards'; choose from streaming" in capsys.readouterr().err
    assert benchmark.main(["compare", "--ways", "jax"]) == 1
    assert "there is no way 'jax'; choose from clipbias, torch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["train", "--layers", "2", "3"])
    assert "train takes one number of --layers" in capsys.readouterr().err
    with pytest.raises(benchmark.ClipbiasError, match="no measured line"):
        report.read([])


def unmeasured(monkeypatch, result=None):
    """A `train` that measures nothing."""

    def train(parsed):
        assert result is not None, "measured"
        return result

    monkeypatch.setattr(steps, "train", train)


@pytest.mark.parametrize("place", ["none/lines.jsonl", "", "file/lines.jsonl"])
def test_a_file_that_cannot_be_appended_to_is_told_before_measuring(place, capsys, tmp_path, monkeypatch):
    unmeasured(monkeypatch)
    (tmp_path / "file").touch()
    assert benchmark.main(["train", *SMALL, f"--append={tmp_path / place}"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"error: cannot add the line to {tmp_path / place}: ") and told.err.count("\n") == 1
    assert not told.out


def test_the_line_is_printed_also_where_it_cannot_be_appended(capsys, tmp_path, monkeypatch):
    unmeasured(monkeypatch, {"seconds": 1.0})
    written = tmp_path / "lines.jsonl"
    original = benchmark.append

    def full(path, text):
        original(path, text)
        if text:
            raise benchmark.ClipbiasError("no room")

    monkeypatch.setattr(benchmark, "append", full)
    assert benchmark.main(["train", *SMALL, f"--append={written}"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["seconds"] == 1.0
    assert told.err == "error: no room\n"


@pytest.mark.parametrize(
    "option",
    ["--repeats=0", "--repeats=-1", "--batches=0", "--batch=0", "--classes=0", "--images=x"],
)
def test_numbers_that_nothing_can_be_measured_with_are_refused(option, capsys, monkeypatch):
    unmeasured(monkeypatch)
    with pytest.raises(SystemExit):
        benchmark.main(["train", option])
    name, value = option.split("=")
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"argument {name}: {value!r} must be a whole number, 1 or more.")
    with pytest.raises(SystemExit):
        benchmark.main(["train", "--layers=-1"])
    assert "'-1' must be a whole number, 0 or more." in capsys.readouterr().err
