"""A run that moves between two real processes, one device and eight, at a notice to stop each time."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipbias.training.trainer import VOLATILE
from safetensors.numpy import load_file

from clipbias.hosts import Stopped
from clipbias.io import read_json, read_json_lines
from clipbias.training import loop
from clipbias.training.workdir import ADAPTER
from configs import demo
from configs import train as config_file
from experiments import table1, train
from tests.end_to_end import binaries
from tests.forks import Fork

STEPS = 20
CHANGES = {"dataset": "demo/digits", "shots": 4, "epochs": STEPS, "checkpoint_seconds": 0.0, "learning_rate": 0.02}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(model: Path, workdir: Path, cache: Path, method: str = "bias") -> list[Fork]:
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    arguments = [f"--config=configs/train.py:{method}", f"--config.model={model}", f"--workdir={workdir}"]
    arguments += [f"--config.{name}={value}" for name, value in CHANGES.items()]
    return [binaries.start("train", *arguments, cache=cache, JAX_PROCESS_ID=str(index), **job) for index in range(2)]


def ends(processes: list[Fork]) -> list[tuple[str, str]]:
    """What each process printed by its end; one that waits for the other forever fails the test."""
    try:
        return [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def here(model: Path, workdir: Path, devices: int, method: str = "bias") -> dict:
    """`experiments.train` on devices of this process."""
    config = config_file.get_config(method)
    config.update(CHANGES)
    config.model, config.mesh.data = str(model), devices
    train.main(config, workdir)
    return json.loads((workdir / "result.json").read_text())


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the step after so many send SIGTERM to this process."""
    original, calls = loop.train_step, 0

    def step_and_signal(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step_and_signal)


def test_a_run_moves_between_processes_and_devices(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device, two processes, eight devices: that two processes also end a run is seen in the test below."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    metrics = moved / "metrics.jsonl"
    expected = here(model, whole, 1)

    stop_after(3, monkeypatch)
    with pytest.raises(Stopped, match=f"stopped at step 3 of {STEPS}"):
        here(model, moved, 1)
    monkeypatch.undo()

    processes = start_two(model, moved, cache)
    deadline = time.monotonic() + 120
    while len(read_json_lines(metrics)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # to one of them alone
    for process, (_, errors) in zip(processes, ends(processes), strict=True):
        assert process.returncode == 143, errors[-3000:]
        assert f"of {STEPS}; the same command continues" in errors
    assert 3 < read_json_lines(metrics)[-1]["step"] < STEPS

    result = here(model, moved, 8)
    assert result["accuracy"] == expected["accuracy"]
    losses = [[line["loss"] for line in read_json_lines(folder / "metrics.jsonl")] for folder in (whole, moved)]
    assert [line["step"] for line in read_json_lines(metrics)] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    adapters = [load_file(folder / ADAPTER) for folder in (whole, moved)]
    for name in adapters[0]:
        np.testing.assert_allclose(adapters[0][name], adapters[1][name], rtol=1e-3, atol=2e-5)


def test_two_processes_share_the_features_of_training_images(model: Path, cache: Path, tmp_path: Path) -> None:
    """A cache of ten passes, training on fresh ones, and a search on validation images: each has its share of all."""
    one, two = tmp_path / "one", tmp_path / "two"
    expected = here(model, one, 1, "tip_adapter_f")
    processes = start_two(model, two, cache, "tip_adapter_f")
    for index, (output, errors) in enumerate(ends(processes)):
        assert processes[index].returncode == 0, errors[-3000:]
        assert ("of test images" in output) == (index == 0)  # one process speaks for all
        assert (f"{STEPS}/{STEPS}" in errors) == (index == 0)
    result = json.loads((two / "result.json").read_text())
    assert (result["accuracy"], result["image_hash"]) == (expected["accuracy"], expected["image_hash"])
    np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-4)
    adapters = [load_file(folder / ADAPTER) for folder in (one, two)]
    assert adapters[0].keys() == adapters[1].keys() and any(name.startswith("constants/") for name in adapters[0])
    for name in adapters[0]:
        np.testing.assert_allclose(adapters[0][name], adapters[1][name], rtol=1e-3, atol=2e-5)


GRID = {"methods": ("taskres",), "datasets": ("demo/digits", "demo/fashion"), "epochs": 2, "shots": (1,), "seeds": (1,)}


def start_grid(model: Path, workdir: Path, cache: Path, fault: str = "", **changes: Any) -> list[Fork]:
    """Two processes of a grid of two cells, or of another; the second meets with a fault of `tools.faulty_process`."""
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    settings = {"model": model} | GRID | changes
    arguments = ["--config=configs/demo.py", f"--workdir={workdir}"]
    arguments += [f"--config.{name}={value}" for name, value in settings.items()]
    started = []
    for index in range(2):
        module = ["experiments.table1"]
        if fault and index:
            module = ["tools.faulty_process", fault, *module]
        environment = {**binaries.environment(cache), **job, "JAX_PROCESS_ID": str(index)}
        started.append(Fork(*module, *arguments, environment=environment))
    return started


def test_what_befalls_one_process_ends_both_alike(model: Path, cache: Path, tmp_path: Path) -> None:
    """First the image of one cell is damaged for one of them, and the other cell is done; then the first is killed."""
    processes = start_grid(model, tmp_path, cache, "image")
    said = [errors for _, errors in ends(processes)]
    assert [process.returncode for process in processes] == [1, 1], said
    assert "Traceback" not in "".join(said)
    last = {errors.strip().splitlines()[-1] for errors in said}
    assert len(last) == 1 and "1 of 2 cells failed; the first one: process 1 (" in last.pop()
    rows = {row["dataset"]: row for row in read_json_lines(tmp_path / "results.jsonl")}
    assert rows["demo/fashion"]["status"] == "ok" and rows["demo/digits"]["status"] == "failed"
    assert "cannot be decoded" in rows["demo/digits"]["error"]

    (tmp_path / "state.json").unlink()
    processes = start_grid(model, tmp_path, cache)
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[0].kill()
    _, (_, errors) = ends(processes)
    assert processes[1].returncode == 1, errors[-3000:]
    sentence = errors.strip().splitlines()[-1].removeprefix("error: ")
    assert re.fullmatch(r"process 0 \(.+\) ended or stands still; the same command continues\.", sentence)
    assert "Traceback" not in errors and "***" not in errors
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["state"], state["error"]) == ("failed", sentence)


def test_two_processes_choose_the_rates_that_one_does(model: Path, cache: Path, tmp_path: Path) -> None:
    """On as many devices as one process has: by the same accuracies on validation images, and with the same bits."""
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"methods": ("vpt",), "datasets": ("demo/digits",), "seeds": (1, 2)}
    changes |= {"learning_rates": (0.5, 20.0), "rates_file": ""}
    processes = start_grid(model, two, cache, **changes)
    config = demo.get_config()
    config.update(GRID | changes | {"model": str(model)})
    config.mesh.data = 2
    table1.main(config, one)
    for process, (_, errors) in zip(processes, ends(processes), strict=True):
        assert process.returncode == 0, errors[-3000:]
    assert read_json(two / "rates.json") == read_json(one / "rates.json")
    for name in ("trials.jsonl", "results.jsonl"):
        rows = [
            [
                {key: value for key, value in row.items() if key not in VOLATILE}
                for row in read_json_lines(folder / name)
            ]
            for folder in (one, two)
        ]
        assert rows[0] == rows[1] and len(rows[0]) == (4 if name == "trials.jsonl" else 2)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) for folder in (one, two)]
    assert files[0] == files[1] and len(files[0]) == 2
    for name in files[0]:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys() and all(map(np.array_equal, first.values(), second.values())), name


def test_a_process_waits_for_another_that_does_not_come_for_so_long(tmp_path: Path) -> None:
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    join = "from clipbias.training.mesh import start_distributed; start_distributed()"
    for number, missing in enumerate(["another process", f"process 0, at {job['JAX_COORDINATOR_ADDRESS']},"]):
        done = subprocess.run(
            [sys.executable, "-c", join],
            cwd=binaries.ROOT,
            env={**binaries.environment(tmp_path), **job, "JAX_PROCESS_ID": str(number), "CLIPBIAS_JOIN_SECONDS": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith(f"error: {missing} did not join the job within 1 s; ")
