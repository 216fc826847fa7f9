"""`kill -9` at random moments: the continued run ends with the same bits as an undisturbed one."""

import json
import random
import signal
import time
from pathlib import Path

from safetensors.numpy import load_file

from tests.end_to_end import binaries


def kill_at_random(binary: str, arguments: list[str], cache: Path, whole_seconds: float, kills: int) -> None:
    """Starts a binary and kills it, `kills` times, each time at a random moment."""
    moments = random.Random()
    for _ in range(kills):
        process = binaries.start(binary, *arguments, cache=cache)
        time.sleep(moments.uniform(0.3, 1.0) * whole_seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()


def numbers(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=json.dumps)


def assert_same_files(first: Path, second: Path, pattern: str) -> None:
    names = sorted(path.relative_to(first) for path in first.glob(pattern))
    assert names == sorted(path.relative_to(second) for path in second.glob(pattern))
    assert names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_table1(model: Path, cache: Path, tmp_path: Path) -> None:
    arguments = [
        "--config=configs/demo.py",
        f"--config.model={model}",
        "--config.methods=('zero_shot', 'taskres', 'vpt')",
        "--config.datasets=('demo/digits',)",
        "--config.shots=(1, 4)",
        "--config.epochs=4",
        "--config.checkpoint_seconds=0.0",
    ]
    whole, disturbed = [*arguments, f"--workdir={tmp_path / 'a'}"], [*arguments, f"--workdir={tmp_path / 'b'}"]
    binaries.succeed("table1", *whole, cache=cache)
    began = time.monotonic()
    binaries.succeed("table1", *whole, f"--workdir={tmp_path / 'c'}", cache=cache)  # with compiled programs at hand
    kill_at_random("table1", disturbed, cache, time.monotonic() - began, kills=3)
    binaries.succeed("table1", *disturbed, cache=cache)
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert_same_files(tmp_path / "a", tmp_path / "b", "adapters/*.safetensors")
    assert_same_files(tmp_path / "a", tmp_path / "b", "table.*")
    binaries.assert_recorded(tmp_path / "b", "results.jsonl", "table.html", metrics="runs/*/metrics.jsonl")
    temporary = [path for path in (tmp_path / "b").rglob(".*") if path.name != ".lock"]
    assert not temporary


def test_train(model: Path, cache: Path, tmp_path: Path) -> None:
    arguments = [
        "--config=configs/train.py:bias",
        f"--config.model={model}",
        "--config.dataset=demo/digits",
        "--config.epochs=8",
        "--config.checkpoint_seconds=0.0",
    ]
    whole, disturbed = [*arguments, f"--workdir={tmp_path / 'a'}"], [*arguments, f"--workdir={tmp_path / 'b'}"]
    began = time.monotonic()
    binaries.succeed("train", *whole, cache=cache)
    kill_at_random("train", disturbed, cache, time.monotonic() - began, kills=3)
    binaries.succeed("train", *disturbed, cache=cache)
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes()
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
