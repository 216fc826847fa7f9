"""A run that moves between two real processes, one device and eight, at a notice to stop each time."""

import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipbias.analysis.results_file import ARRAYS, load_arrays, load_results
from clipbias.constants import ADAPTER_FILE
from clipbias.hosts import Stopped, stoppable
from clipbias.io import read_json, read_json_lines
from clipbias.settings import from_config
from clipbias.training import loop
from configs import demo
from configs import train as config_file
from configs.table1 import Table1Settings
from experiments import table1, train
from experiments.command_line import note_given
from tests import bad_files
from tests.end_to_end import conftest as binaries
from tests.end_to_end.conftest import SHORT_RUN
from tests.forks import Fork
from tests.helpers import signal_at

STEPS = 20
CHANGES = {"dataset": "demo/digits", "shots": 4, "epochs": STEPS, "checkpoint_seconds": 0.0, "learning_rate": 0.02}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(cache: Path, binary: str, workdir: Path, *arguments: str, **settings: Any) -> list[Fork]:
    """A binary in two processes."""
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    words = [*arguments, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in settings.items())]
    return [binaries.start(binary, *words, cache=cache, JAX_PROCESS_ID=str(index), **job) for index in range(2)]


def start_train(model: Path, workdir: Path, cache: Path, method: str = "bias", **changes: Any) -> list[Fork]:
    return start(
        cache, "train", workdir, f"--config=configs/train.py:{method}", **{"model": model, **(changes or CHANGES)}
    )


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
    note_given(config, [*CHANGES])  # as on the command line of the two
    config.model = str(model)
    config.mesh.data = devices
    train.main(from_config(config_file.TrainSettings, config), workdir)
    return json.loads((workdir / "result.json").read_text())


def assert_same_adapters(first: Path, other: Path) -> dict[str, np.ndarray]:
    """But for rounding: of other processes or devices."""
    adapters = [load_file(path) for path in (first, other)]
    assert adapters[0].keys() == adapters[1].keys()
    for name in adapters[0]:
        np.testing.assert_allclose(adapters[0][name], adapters[1][name], rtol=1e-3, atol=2e-5)
    return adapters[0]


@pytest.mark.ci
@pytest.mark.parametrize("method", ["bias", pytest.param("tip_adapter_f", marks=pytest.mark.long)])
def test_two_processes_train_what_one_does(method, model, trained, cache, tmp_path):
    """Each on its half of every batch and of the test images; one speaks for both.

    Of features there are a cache of ten passes, fresh ones, and a search on validation images.
    """
    whole, two = trained[0], tmp_path / "two"
    changes = SHORT_RUN
    if method != "bias":
        whole, changes = tmp_path / "one", CHANGES
        here(model, whole, 1, method)
    steps = changes["epochs"]
    processes = start_train(model, two, cache, method, **changes)
    for index, (output, errors) in enumerate(ends(processes)):
        assert processes[index].returncode == 0, errors[-3000:]
        assert ("test images" in output) == (f"{steps}/{steps}" in errors) == (index == 0)
    rows = [json.loads((folder / "result.json").read_text()) for folder in (whole, two)]
    for name in ("accuracy", "zero_shot_accuracy", "key", "steps", "images"):
        assert rows[0][name] == rows[1][name], name
    losses = [[line["loss"] for line in read_json_lines(folder / "metrics.jsonl")] for folder in (whole, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    names = assert_same_adapters(whole / ADAPTER_FILE, two / ADAPTER_FILE)
    assert any(name.startswith("constants/") for name in names) == (method == "tip_adapter_f")


@pytest.mark.long
def test_a_run_moves_between_processes_and_devices(model, cache, tmp_path):
    """One device, two processes, eight devices: that two processes also end a run is seen in the first test."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    metrics = moved / "metrics.jsonl"
    expected = here(model, whole, 1)

    stops = signal_at(loop, "train_step", 3)
    with stops, stoppable(), pytest.raises(Stopped, match=f"stopped at step 3 of {STEPS}"):
        here(model, moved, 1)

    processes = start_train(model, moved, cache)
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
    assert_same_adapters(whole / ADAPTER_FILE, moved / ADAPTER_FILE)


SWEEP = {"methods": ("taskres",), "datasets": ("demo/digits",), "epochs": 2, "shots": (1,), "seeds": (1, 2)}


def start_sweep(model: Path, workdir: Path, cache: Path, **changes: Any) -> list[Fork]:
    return start(cache, "table1", workdir, "--config=configs/demo.py", **{"model": model, **SWEEP, **changes})


def sweep_here(model: Path, workdir: Path, **changes: Any) -> None:
    """On as many devices of this process."""
    config = demo.get_config()
    config.update(SWEEP | changes | {"model": str(model)})
    config.mesh.data = 2
    table1.main(from_config(Table1Settings, config), workdir)


@pytest.mark.long
def test_what_both_refuse_alike_costs_no_other_run(model, cache, tmp_path):
    """What learned something for each class is refused for new ones, and what comes after it is run."""
    methods = ("taskres", "zero_shot")
    processes = start_sweep(model, tmp_path, cache, methods=methods, protocol="base_to_new", rates_file=None)
    for process, (_, errors) in zip(processes, ends(processes), strict=True):
        assert process.returncode == 1 and "Traceback" not in errors, errors[-3000:]
        assert "2 of 3 runs failed; the first one: " in errors.strip().splitlines()[-1]
    rows = read_json_lines(tmp_path / "results.jsonl")
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "cannot be used with other classes" in rows[0]["error"]


@pytest.mark.long
def test_two_processes_choose_the_rates_that_one_does(model, cache, tmp_path):
    """On as many devices as one process has: by the same accuracies on validation images."""
    single, two = tmp_path / "one", tmp_path / "two"
    changes = {"methods": ("vpt",), "learning_rates": (0.5, 20.0), "rates_file": None}
    processes = start_sweep(model, two, cache, **changes)
    sweep_here(model, single, **changes)
    for process, (_, errors) in zip(processes, ends(processes), strict=True):
        assert process.returncode == 0, errors[-3000:]
    (rates,), (other_rates,) = (read_json(folder / "rates.json")["rates"] for folder in (single, two))
    assert rates["learning_rate"] == other_rates["learning_rate"]
    for name, accuracy in (("validation.jsonl", "validation_accuracy"), ("results.jsonl", "accuracy")):
        rows, others = (read_json_lines(folder / name) for folder in (single, two))
        assert len(rows) == len(others) == (4 if name == "validation.jsonl" else 2)
        for row, other in zip(rows, others, strict=True):
            assert (row["key"], row[accuracy]) == (other["key"], other[accuracy])
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) for folder in (single, two)]
    assert files[0] == files[1] and len(files[0]) == 2
    for name in files[0]:
        assert_same_adapters(single / name, two / name)


@pytest.mark.long
def test_where_one_process_is_killed_the_other_ends_and_both_continue(model, cache, tmp_path):
    changes = {"methods": ("vpt",), "epochs": 3}
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    sweep_here(model, whole, **changes)
    processes = start_sweep(model, disturbed, cache, checkpoint_seconds=0.0, **changes)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(disturbed.glob("runs/*/metrics.jsonl")):
        time.sleep(0.02)
    processes[0].kill()
    ends(processes)
    assert processes[0].returncode == -signal.SIGKILL and processes[1].returncode not in (0, None)
    processes = start_sweep(model, disturbed, cache, checkpoint_seconds=0.0, **changes)
    for process, (_, errors) in zip(processes, ends(processes), strict=True):
        assert process.returncode == 0, errors[-3000:]
    assert binaries.results(disturbed) == binaries.results(whole)


@pytest.mark.long
def test_a_study_of_two_processes_is_that_of_one(model, images, adapters, cache, tmp_path):
    """Batches of four rows on one device, and split between two processes: the same images in other hands."""
    settings = {"dataset": "folder", "data_dir": images}
    evaluated = {"zero_shot": {"model": model}, "tuned": {"adapters": adapters[0]}}
    for name, tested in evaluated.items():
        words = [f"--config.{setting}={value}" for setting, value in (settings | tested).items()]
        ends([binaries.start("evaluate", *words, f"--workdir={tmp_path / name}", cache=cache)])
    # Stored predictions are of all images, and correct other ones than the four that are explained.
    settings |= {"adapters": adapters[0], "batch_size": 4, "image_limit": 4}
    settings["predictions"] = ",".join(str(tmp_path / name) for name in evaluated)
    settings |= {"sections": "relevancy,vision_attention,causal"}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    first = binaries.start("explain", *arguments, f"--workdir={tmp_path / 'one'}", cache=cache)
    two = start(cache, "explain", tmp_path / "two", **settings)
    ended = ends([first, *two])
    assert all(process.returncode == 0 for process in (first, *two)), ended
    whole, split = (load_arrays(tmp_path / name / ARRAYS) for name in ("one", "two"))
    assert whole.keys() == split.keys()
    assert len(whole["sections/predictions/labels"]) > 4 and whole["sections/predictions/models/zero_shot"].min() >= 0
    for name, expected in whole.items():
        assert expected.shape == split[name].shape, name
        if np.issubdtype(expected.dtype, np.floating):
            largest = float(np.nanmax(np.abs(expected), initial=0.0))
            # The error of a sum that is 1 for every image is rounding, and nothing else.
            tolerance = 1e-6 if name.endswith("/standard_error") else 2e-5 * largest
            np.testing.assert_allclose(split[name], expected, rtol=1e-4, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(split[name], expected, err_msg=name)
    (first,), (two,) = (load_results(tmp_path / name).methods for name in ("one", "two"))
    assert first.labels == two.labels
    assert (tmp_path / "two" / "report" / "report.html").is_file()


@pytest.mark.long
def test_a_broken_image_is_the_last_line_of_who_read_it(model, images, cache, tmp_path):
    """Whatever JAX says while both end, and nobody blames the disk."""
    shutil.copytree(images, tmp_path / "images")
    broken = sorted((tmp_path / "images" / "train").rglob("*.png"))[0]
    broken.write_bytes(bad_files.PICTURES["a PNG's beginning"])
    changes = SHORT_RUN | {"dataset": "folder", "data_dir": tmp_path / "images", "shots": 2}
    processes = start_train(model, tmp_path / "w", cache, **changes)
    said = [errors.strip() for _, errors in ends(processes)]
    assert all(process.returncode for process in processes)
    last = [errors.splitlines()[-1] for errors in said]
    assert any(line.startswith("error: the image ") and str(broken) in line for line in last), last
    assert not any("checkpoint" in errors or "the disk" in errors for errors in said)
