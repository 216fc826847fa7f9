"""A command that is stopped or killed ends with the undisturbed results when it runs again, and leaves no more."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import configs.demo
import configs.explain
import experiments.explain
import experiments.table1
import experiments.train
from clipbias.io import PART
from clipbias.training import evaluate, loop
from experiments import common
from tests import helpers
from tests.end_to_end import binaries


def table1(model: Path, workdir: Path) -> int:
    """The status of a small sweep."""
    config = configs.demo.get_config()
    config.model = str(model)
    config.methods = ("zero_shot", "vpt")
    config.datasets = ("demo/digits",)
    config.shots = (1,)
    config.seeds = (1,)
    config.epochs = 3
    config.eval_batch_size = 100
    config.mesh.data = 1
    return common.answer(experiments.table1.main, config, str(workdir))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of an undisturbed sweep."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    assert table1(model, folder) == 0
    return binaries.results(folder)


@pytest.mark.ci
def test_a_run(model, trained, tmp_path):
    """Of `train`; that a sweep continues to the same rows is found in `tests/training/test_sweep.py` too."""
    before = signal.getsignal(signal.SIGTERM)
    settings = binaries.SHORT_RUN | {"model": str(model)}
    with helpers.signal_at(loop, "train_step", 2):
        status, output = binaries.answer_here(experiments.train, settings, tmp_path)
    assert status == 143 and "stopped at step 2 of 5" in output
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob(f"{PART}*"))
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "interrupted"
    binaries.succeed_here(experiments.train, settings, tmp_path)
    assert binaries.results(tmp_path) == binaries.results(trained[0]) != {}


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "name", "call", "number", "status", "sentence"),
    [
        # While the last step is awaited, and in an evaluation.
        (loop.StepReport, "catch_up", 3, signal.SIGINT, 130, "stopped"),
        (evaluate, "image_features", 2, signal.SIGTERM, 143, "stopped; the same command continues."),
    ],
)
def test_a_sweep(where, name, call, number, status, sentence, model, whole, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with helpers.signal_at(where, name, call, number):
        assert table1(model, tmp_path) == status
    assert sentence in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob(f"{PART}*"))
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "interrupted"
    assert table1(model, tmp_path) == 0
    assert binaries.results(tmp_path) == whole


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_is_stopped_again_and_again(seed, model, cache, tmp_path):
    """At random moments, by kill -9, SIGTERM or Ctrl-C."""
    draw = np.random.default_rng(seed)
    folder = tmp_path / "stopped"
    arguments = ["--config=configs/train.py:bias", f"--config.model={model}", "--config.dataset=demo/digits"]
    arguments += ["--config.epochs=20", "--config.shots=4", "--config.checkpoint_seconds=0.0"]
    for _ in range(2):  # the second with its programs on disk
        began = time.monotonic()
        done = binaries.run("train", *arguments, f"--workdir={tmp_path / str(began)}", cache=cache)
        assert done.returncode == 0, done.stderr[-3000:]
    length = time.monotonic() - began
    for _ in range(3):
        number = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][draw.integers(3)]
        process = binaries.start("train", *arguments, f"--workdir={folder}", cache=cache)
        deadline = time.monotonic() + draw.uniform(0.05, 1.0) * length
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (0, -number, 128 + number), process.returncode
    done = binaries.run("train", *arguments, f"--workdir={folder}", cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert binaries.results(folder) == binaries.results(tmp_path / str(began)) != {}
