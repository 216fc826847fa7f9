"""`tools.benchmarks all`: what is asked for, what a failure costs, what the page says."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip.precision import resolve
from configs import table1
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import device, measure
from tools.benchmarks.steps import train

ABOUT = {"device": "A card", "platform": "gpu", "devices": 1, "memory": 80 << 30, "jax": "1.0", "clipbias": "0.1"}


def found(command: list[str]) -> tuple[str, Any]:
    """What a measurement gives, made up: a thousand classes take twice as long; one of PyTorch's does not run."""
    words = dict(word.lstrip("-").split("=", 1) for word in command[1:] if "=" in word)
    shared = {"dtype": words["dtype"], "share_of_matmul": 0.5}
    if command[0] == "features":
        return "measured", shared | {"images_per_second": 1000.0}
    if command[0] == "relevancy":
        point = {"batch": 4, "way": "streaming", "seconds_per_pair": 0.01, "share_of_matmul": 0.25, "needed_bytes": 1e9}
        return "measured", shared | {"points": [point]}
    seconds = 0.1 * (1 if words["classes"] == "100" else 2)
    if command[0] == "train":
        return "measured", shared | {"seconds": seconds, "planned_bytes": 3e9, "peak_bytes": 2.5e9}
    if words["method"] == "vpt":
        return "failed", "error: torch | is broken"
    points = [{"way": "clipbias", "seconds": seconds}, {"way": "torch", "seconds": 3 * seconds}]
    return "measured", shared | {"points": points}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, in its order, with made-up results."""
    commands: list[str] = []

    def run(command: list[str]) -> tuple[str, Any]:
        commands.append(" ".join(command))
        return found(command)

    monkeypatch.setattr(device, "_facts", lambda: ABOUT)
    monkeypatch.setattr(device, "_run", run)
    return commands


def test_everything_is_measured_and_told(asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["all", f"--output={tmp_path / 'card'}", "--methods", "vpt", "ivlp", "--dtypes", "float32", "bfloat16"]
    assert benchmark.main(arguments) == 0
    # Features and relevancy in two types; steps of two methods, both beside PyTorch, in two types and four sizes.
    assert len(asked) == len(set(asked)) == 2 + 2 + 2 * 2 * 2 * 4
    written = json.loads((tmp_path / "card.json").read_text())
    assert written["about"] == ABOUT and len(written["measured"]) == len(asked) - 8 and len(written["failed"]) == 8
    page = (tmp_path / "card.md").read_text()
    assert page in capsys.readouterr().out
    assert "| ivlp | 1000 | 32 | bfloat16 | 200.0 | 50% | 3.00 | 2.50 | 600.0 | 3.00 |" in page
    assert "| vpt | 100 | 4 | float32 | 100.0 | 50% | 3.00 | 2.50 |  |  |" in page
    assert "| bfloat16 | 4 | streaming | 10.00 | 25% | 1.00 |" in page
    assert "| error: torch / is broken |" in page


def test_what_is_there_is_not_measured_again(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["all", f"--output={tmp_path / 'card'}", "--methods", "vpt", "--dtypes", "float32"]
    assert benchmark.main(arguments) == 0
    asked.clear()
    assert benchmark.main(arguments) == 0
    assert len(asked) == 4 and all(command.startswith("compare ") for command in asked)  # those that failed
    monkeypatch.setattr(device, "_facts", lambda: ABOUT | {"device": "Another card"})
    assert benchmark.main(arguments) == 1


def test_every_measurement_is_a_command_that_there_is() -> None:
    parsed = benchmark.parse(["all", "--geometry=tiny"])
    for command in device.commands(["bias", "maple"], ["float32", "bfloat16"], parsed):
        assert benchmark.parse(command).geometry == "tiny"


def test_the_time_of_the_table_is_that_of_its_steps() -> None:
    """Of steps that take as many milliseconds as there are classes, and images at a thousand a second."""
    training, evaluation = device.table1_seconds("bias", {100: 0.1, 1000: 1.0}, 1000.0)
    config, steps = table1.get_config(), 0.0
    classes = {name: device.ENTRIES[name].classes for name in config.datasets}
    for count in classes.values():
        for shots in (4, 8, 16):
            steps += 3 * 10 * max(1, shots * count // 32) * count / 1000
    assert training == pytest.approx(steps)
    assert evaluation == pytest.approx(9 * sum(device.ENTRIES[name].sizes["test"] for name in classes) / 1000)


def test_a_device_is_measured_in_all_types_that_it_has() -> None:
    for platform in ("gpu", "tpu"):
        assert all(resolve(dtype, platform) == dtype for dtype in device.DTYPES[platform])


def test_a_share_is_that_of_the_rate_in_the_same_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def product(dtype: str, side: int) -> tuple[Any, int]:
        asked.append(dtype)
        return lambda: np.zeros(()), 10**9

    monkeypatch.setattr(measure, "square_product", product)
    for dtype in ("bfloat16", "float32"):
        command = ["features", "--geometry=tiny", "--batch=2", "--repeats=1", f"--dtype={dtype}"]
        assert benchmark.main(command) == 0
        row = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert row["share_of_matmul"] == pytest.approx(row["flop_per_second"] / row["matmul_flop_per_second"])
    assert asked == ["bfloat16", "float32"]


def test_a_step_tells_what_was_planned() -> None:
    parsed = benchmark.parse(["train", "--geometry=tiny", "--classes=3", "--batch=2", "--repeats=1", "--method=vpt"])
    row = train(parsed)
    assert row["planned_bytes"] > row["program_bytes"] > 0


@pytest.mark.parametrize(
    ("dtype", "held", "formed"),
    [("float32", "f32", "HIGHEST"), ("tensorfloat32", "f32", "HIGH"), ("bfloat16", "bf16", "HIGH")],
)
def test_a_rate_is_that_of_products_of_its_type(dtype: str, held: str, formed: str) -> None:
    multiply, count = measure.square_product(dtype, 8)
    (product,) = [line for line in jax.jit(multiply).lower().as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<8x8x{held}>, tensor<8x8x{held}>)" in product and f"precision = [{formed}, {formed}]" in product
    assert count == 8 * 8 * (8 + 8)
