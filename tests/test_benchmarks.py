"""`tools.benchmarks`: what the commands measure and print, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import encode_image
from clipbias.clip.precision import resolve
from clipbias.errors import ClipbiasError
from configs import table1
from tests import helpers
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import device, measure, model, pipeline, ways

TINY = ["--geometry=tiny", "--repeats=1", "--together"]
SMALL = [*TINY, "--classes=6", "--batch=2"]
Printed = Callable[..., dict[str, Any]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture) -> Printed:
    """Runs a command; its last line, and that every row is in the table before."""

    def run(*arguments: str) -> dict[str, Any]:
        assert benchmark.main(arguments) == 0
        out = capsys.readouterr().out
        report = json.loads(out.splitlines()[-1])
        assert all(f"| {point['way']} | {point['seconds']:.3f} |" in out for point in report.get("points", ()))
        return report

    return run


def test_class_names_are_distinct_and_as_long_as_imagenets() -> None:
    names = model.class_names(1000)
    assert len(set(names)) == 1000
    tokenizer = model.random_clip(model.geometry("tiny")).tokenizer
    lengths = np.bincount([len(ids) for ids in tokenizer(names)["input_ids"]])
    assert {n: int(count) for n, count in enumerate(lengths) if count} == model.NAME_LENGTHS


@pytest.mark.ci
@pytest.mark.parametrize("method", helpers.short(["ivlp", "promptsrc", "clip_adapter"], "clip_adapter"))
def test_a_step_is_measured(method: str, printed: Printed, tmp_path: Path) -> None:
    """Of a plain method, of one with a teacher and an average, and of one that learns from features."""
    written = tmp_path / "lines.jsonl"
    result = printed("train", *SMALL, f"--method={method}", f"--append={written}")
    assert result == json.loads(written.read_text())
    (point,) = result["points"]
    assert point["loss"] > 0 and point["flop"] > 0 and point["share_of_matmul"] > 0
    assert point["planned_bytes"] > point["program_bytes"] > 0
    assert point["needed_bytes"] == point["peak_bytes"] - point["before_bytes"]


@pytest.mark.long
def test_an_image_is_tested_with_its_views(printed: Printed) -> None:
    (point,) = printed("train", *SMALL, "--method=tpt", "--option=crops=31")["points"]
    assert point["seconds"] > 0 and point["program_bytes"] > 0 and "loss" not in point


@pytest.mark.parametrize("method", ["ivlp", "clip_lora", "cocoop", "promptsrc", "bias", "coop", "vpt", "tpt"])
def test_torch_takes_the_same_step(method: str, printed: Printed) -> None:
    """Only where PyTorch is installed. Losses or logits that differ would be refused."""
    pytest.importorskip("torch")
    ours, other = printed("train", *SMALL, f"--method={method}", "--ways", "clipbias", "torch")["points"]
    assert other["difference"] < 1e-4 or method == "promptsrc"
    assert ours["seconds"] > 0 and np.isfinite(other.get("loss", 0.0))


@pytest.mark.long
def test_ways_to_relevancy_have_the_same_maps(printed: Printed) -> None:
    points = printed("relevancy", *TINY, "--batches=2", "--ways", "streaming", "recompute=1", "chunk=1")["points"]
    assert [point["way"] for point in points] == ["streaming", "recompute=1", "chunk=1"]
    assert all(point["difference"] < 2e-5 and point["flop"] > 0 for point in points)
    assert all(point["seconds_per_pair"] == point["seconds"] / 2 for point in points)


def test_torch_has_the_same_maps(printed: Printed) -> None:
    """Only where PyTorch is installed."""
    pytest.importorskip("torch")
    points = printed("relevancy", *TINY, "--batches=2", "--ways", "streaming", "torch", "torch-per-pair")["points"]
    assert max(point["difference"] for point in points) < 2e-5


@pytest.mark.long
def test_a_way_has_a_process_of_its_own(printed: Printed) -> None:
    measured = printed("features", "--geometry=tiny", "--batch=2", "--repeats=1", "--dtype=bfloat16")
    assert 0 < measured["before_bytes"] < measured["peak_bytes"]
    assert measured["images_per_second"] == 2 / measured["seconds"]


def load(job: ways.Job) -> ways.Loaded:
    """A way for `ways` that answers with a number."""
    return lambda: None, lambda: {"answer": [[1.0, -9.0], [[job["answer"], 4.0]]]}


def test_a_way_with_another_answer_or_an_error_is_refused() -> None:
    def measured(*answers: float, dtype: str = "float32", module: str = __name__) -> list[float]:
        jobs = [{"way": f"way {a}", "module": module, "dtype": dtype, "answer": a} for a in answers]
        return [row["difference"] for row in ways.measured(jobs, 1, together=True)]

    assert measured(1.0, 1.001) == [0.0, pytest.approx(0.001 / 4)]
    assert measured(1.0, 1.1, dtype="bfloat16") == [0.0, pytest.approx(0.1 / 4)]
    with pytest.raises(ClipbiasError, match=r"way 1\.1 and way 1\.0 differ by 2\.5e-02 of a row's largest number"):
        measured(1.0, 1.1)
    with pytest.raises(ClipbiasError, match="differ by nan"):
        measured(1.0, np.nan)
    with pytest.raises(ClipbiasError, match=r"way 1\.0 failed: ModuleNotFoundError: .*nothing"):
        measured(1.0, module="tools.benchmarks.nothing")


def test_the_pipeline_is_measured(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(HEIGHT=40, WIDTH=50, SIZE=16).items():
        monkeypatch.setattr(pipeline, name, value)
    result = printed("pipeline", "--images=14", "--batch=4", "--repeats=1")
    assert result["images"] == 12
    for rates in (result["images_per_second"], result["images_per_second_of_a_core"]):
        assert "clipbias, 1 thread" in rates and len(rates) >= 3 and all(rate > 0 for rate in rates.values())


# What is measured of a whole device

ABOUT = {"device": "A card", "platform": "gpu", "devices": 1, "memory": 80 << 30, "jax": "1.0", "clipbias": "0.1"}


def found(command: list[str]) -> tuple[str, Any]:
    """A made-up result: a thousand classes take twice as long, and a PyTorch step does not run."""
    words = dict(word.lstrip("-").split("=", 1) for word in command[1:] if "=" in word)
    shared = {"dtype": words["dtype"], "share_of_matmul": 0.5}
    if command[0] == "features":
        return "measured", shared | {"images_per_second": 1000.0}
    if command[0] == "relevancy":
        point = {"batch": 4, "way": "streaming", "seconds_per_pair": 0.01, "share_of_matmul": 0.25, "needed_bytes": 1e9}
        return "measured", shared | {"points": [point]}
    if command[-1] == "torch" and words["method"] == "vpt":
        return "failed", "error: torch | is broken"
    seconds = 0.1 * (1 if words["classes"] == "100" else 2) * (3 if command[-1] == "torch" else 1)
    point = {"seconds": seconds, "share_of_matmul": 0.5, "planned_bytes": 3e9, "peak_bytes": 2.5e9}
    return "measured", shared | {"points": [point]}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, in its order, with made-up results and PyTorch installed."""
    commands: list[str] = []

    def run(command: list[str]) -> tuple[str, Any]:
        commands.append(" ".join(command))
        return found(command)

    monkeypatch.setattr(device, "_facts", lambda: ABOUT)
    monkeypatch.setattr(device, "_run", run)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: name)
    return commands


def test_a_device_is_measured_and_what_is_there_is_not_measured_again(
    commands: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["all", f"--output={tmp_path / 'card'}", "--methods", "vpt", "ivlp", "--dtypes", "float32", "bfloat16"]
    assert benchmark.main(arguments) == 0
    # Features and relevancy in two types; steps of two methods, also in PyTorch, in two types and four sizes.
    assert len(commands) == len(set(commands)) == 2 + 2 + 2 * 2 * 2 * 4
    written = json.loads((tmp_path / "card.json").read_text())
    assert written["about"] == ABOUT
    assert len(written["measured"]) == len(commands) - 8 and len(written["failed"]) == 8
    page = (tmp_path / "card.md").read_text()
    assert page in capsys.readouterr().out
    assert "| ivlp | 1000 | 32 | bfloat16 | 200.0 | 50% | 3.00 | 2.50 | 600.0 | 3.00 |" in page
    assert "| vpt | 100 | 4 | float32 | 100.0 | 50% | 3.00 | 2.50 |  |  |" in page
    assert "| bfloat16 | 4 | streaming | 10.00 | 25% | 1.00 |" in page
    assert "| error: torch / is broken |" in page
    commands.clear()
    assert benchmark.main(arguments) == 0
    assert len(commands) == 8 and all(command.endswith("--ways torch") for command in commands)  # those that failed
    monkeypatch.setattr(device, "_facts", lambda: ABOUT | {"device": "Another card"})
    assert benchmark.main(arguments) == 1


def test_every_measurement_of_a_device_is_a_command_in_a_type_that_it_has(commands: list[str]) -> None:
    for command in device.commands(["bias", "maple"], ["float32", "bfloat16"], benchmark.parse(["all"])):
        benchmark.parse(command)
    for platform in ("gpu", "tpu"):
        assert all(resolve(dtype, platform) == dtype for dtype in device.DTYPES[platform])


def test_the_time_of_the_table_is_that_of_its_steps() -> None:
    """Of steps that take as many milliseconds as there are classes, and images at a thousand a second."""
    training, evaluation = device.table1_seconds("bias", {100: 0.1, 1000: 1.0}, 1000.0)
    config = table1.get_config()
    steps = 0.0
    classes = {name: device.ENTRIES[name].classes for name in config.datasets}
    for count in classes.values():
        for shots in (4, 8, 16):
            steps += 3 * 10 * max(1, shots * count // 32) * count / 1000
    assert training == pytest.approx(steps)
    assert evaluation == pytest.approx(9 * sum(device.ENTRIES[name].sizes["test"] for name in classes) / 1000)


@pytest.mark.parametrize(
    ("dtype", "held", "formed"),
    [("float32", "f32", "HIGHEST"), ("tensorfloat32", "f32", "HIGH"), ("bfloat16", "bf16", "HIGH")],
)
def test_a_rate_is_that_of_products_of_its_type(dtype: str, held: str, formed: str) -> None:
    multiply, count = measure.square_product(dtype, 8)
    (product,) = [line for line in jax.jit(multiply).lower().as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<8x8x{held}>, tensor<8x8x{held}>)" in product and f"precision = [{formed}, {formed}]" in product
    assert count == 8 * 8 * (8 + 8)


def test_traced_products_are_those_counted_by_hand() -> None:
    """17 tokens of width 64 through a whole block and one that is read at one row; 16 patches of 192 numbers."""
    clip = model.random_clip(model.geometry("tiny"))
    block = 2 * 17 * (4 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 17 * 64
    last = 2 * 17 * 2 * 64 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 64
    image = jnp.zeros((1, 32, 32, 3))
    encode = jax.jit(lambda params, image: encode_image(params, clip.config, image)[0])
    assert measure.traced(encode, clip.params, image) == 2 * 16 * 192 * 64 + block + last + 2 * 64 * 32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--geometry=ViT-X"], "choose one of tiny, ViT-B/32"),
        (["relevancy", "--ways", "backwards"], "there is no way 'backwards'; choose from streaming"),
        (["train", "--ways", "jax"], "there is no way 'jax'; choose from clipbias, torch"),
        (["train", "--append=none/lines.jsonl"], "cannot add the line to none/lines.jsonl: "),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
    assert benchmark.main(arguments) == 1
    out = capsys.readouterr()
    assert out.err.startswith("error: ") and sentence in out.err and out.err.count("\n") == 1 and not out.out


@pytest.mark.parametrize("option", ["--repeats=0", "--batches=0", "--batch=-1", "--classes=0", "--images=x"])
def test_numbers_that_nothing_can_be_measured_with_are_refused(option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse(["train", option])
    name, value = option.split("=")
    assert f"argument {name}: {value!r} must be a whole number, 1 or more." in capsys.readouterr().err
