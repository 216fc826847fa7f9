"""What `clipbias train` says at its end; and a command that is stopped or killed: it ends with the same results."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
import configs.demo
from clipbias import data
from clipbias.export.card import model_card
from clipbias.io import PART
from clipbias.training import forward, loop, select
from clipbias.training.select import Candidate
from clipbias.tuning.adapter import read_adapter
from clipbias.tuning.registry import make_method
from experiments import common, evaluate, table1, train
from tests import helpers
from tests.end_to_end import conftest as binaries
from tests.end_to_end.conftest import SHORT_RUN
from tests.training.conftest import COLOURS, colour_split


def test_zero_shot_is_that_of_a_run_of_its_own(model, trained, tmp_path, monkeypatch):
    short = SHORT_RUN | {"model": str(model)}
    binaries.succeed_here(train, short | {"method": "zero_shot", "method_options": {}}, tmp_path)
    tuned, plain = (json.loads((folder / "result.json").read_text()) for folder in (trained[0], tmp_path))
    assert tuned["zero_shot_accuracy"] == plain["accuracy"] and "zero_shot_accuracy" not in plain
    # A finished run knows it.
    monkeypatch.setattr(train, "run_group", lambda *_, **__: pytest.fail("run again"))
    printed, _ = binaries.succeed_here(train, short, trained[0])
    assert f"zero_shot on demo/digits: {plain['accuracy']:.2f} %" in printed


def test_sentences_about_a_run():
    row = {"learning_rate": 0.1, "accuracy": 60.0, "zero_shot_accuracy": 50.0, "images": 30, "loss": 1.0}
    bias = make_method("bias")
    assert select.cautions_of_row(row, bias, 3) == ()
    assert "ended at 1.1, above ln 3" in select.cautions_of_row(row | {"loss": 1.0987}, bias, 3)[0]
    assert select.cautions_of_row(row | {"loss": 1.0985}, bias, 3) == ()
    assert select.cautions_of_row(row | {"loss": 9.0}, make_method("promptsrc"), 3) == ()  # a loss of its own
    for frozen, chance in ((60.0, True), (100.0, False)):
        (line,) = select.cautions_of_row(row | {"zero_shot_accuracy": frozen}, bias, 3)
        assert "is no better than zero-shot on 30 test images" in line and ("within chance" in line) == chance
    assert select.cautions_of_row({**row, "learning_rate": None, "loss": None}, bias, 3) == ()


@pytest.mark.parametrize(
    ("images", "higher", "lower", "chance"),
    [(7, 6, 2, False), (10, 9, 3, False), (7, 6, 3, True), (30, 3, 0, True), (30, 8, 2, False), (30, 30, 26, True)],
)
def test_a_difference_is_within_chance(images, higher, lower, chance):
    """Newcombe (1998) has intervals of 6 and 2 of 7 from 0.058, of 9 and 3 of 10 from 0.17."""
    assert select.within_chance(100 * higher / images, 100 * lower / images, images) == chance


@pytest.mark.parametrize(("images", "right", "tells"), [(6, 5, False), (6, 2, True), (30, 28, False), (160, 152, True)])
def test_so_few_images_that_no_gain_could_show(images, right, tells):
    """Whatever the tuned model answers: six of six after five is within chance, and after two is not."""
    frozen, tuned = (Candidate(None, 100 * count / images, None) for count in (right, images))
    assert bool(select.too_few_to_tell(tuned, frozen, images, "validation image")) == (not tells)


@pytest.mark.ci
def test_a_run_is_calibrated(model, trained, tmp_path, monkeypatch):
    """On all validation images, since none selected anything; but not by default. One that is not runs again."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    before = read_adapter(folder / "adapter.safetensors")
    assert before.calibration is None
    settings = binaries.SHORT_RUN | {"model": str(model), "calibrate": True}
    binaries.succeed_here(train, settings, folder)
    adapter = read_adapter(folder / "adapter.safetensors")
    expected = clipbias.load_adapter(trained[0] / "adapter.safetensors").calibrate("demo/digits")
    assert adapter.calibration is not None and expected.calibration is not None
    for name, scores in expected.calibration.arrays().items():
        np.testing.assert_allclose(adapter.calibration.arrays()[name], scores, rtol=1e-4, atol=1e-6)
    assert adapter.notes == before.notes
    jax.tree.map(np.testing.assert_array_equal, adapter.learnables, before.learnables)
    monkeypatch.setattr(train, "run_group", lambda *_, **__: pytest.fail("run again"))
    printed, _ = binaries.succeed_here(train, settings, folder)
    assert "calibrated on 120 images: it has prediction sets\n" in printed
    evaluated = {"adapters": str(folder), "ood": "demo/fashion"}
    binaries.succeed_here(evaluate, evaluated, tmp_path / "evaluation")
    result = json.loads((tmp_path / "evaluation" / "result.json").read_text())
    assert result["answers"] == pytest.approx(expected.evaluate("demo/digits").answers, abs=0.1)
    tests = data.load("demo/fashion").split("test")
    rejected = expected.predict([tests.image(index) for index in range(len(tests))]).rejected
    assert result["ood"]["accepted"] == pytest.approx(100 * (1 - rejected.mean()), abs=0.1)


@pytest.mark.ci
def test_what_selected_a_setting_calibrates_no_adapter_of_a_sweep(model, tmp_path):
    grid = {"model": str(model), "datasets": ("demo/digits",), "methods": ("gda",), "shots": (1,), "seeds": (1,)}
    printed, _ = binaries.succeed_here(table1, grid | {"calibrate": True}, tmp_path)
    assert "no prediction sets: its validation images (validation split) selected a setting" in printed
    (adapter,) = (tmp_path / "adapters").iterdir()
    assert read_adapter(adapter).calibration is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy pictures of each of three colours: six train, two validate, four are tested."""
    root = tmp_path_factory.mktemp("pictures")
    split = colour_split(12, 5)
    for index, label in enumerate(split.labels):
        folder = root / list(COLOURS)[label]
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.png").write_bytes(split.read(index))
    return root


@pytest.mark.ci
def test_the_rate_of_own_pictures_is_selected(model, pictures, tmp_path, monkeypatch):
    settings = {"model": str(model), "dataset": "folder", "data_dir": str(pictures), "epochs": 6, "batch_size": 6}
    _, progress = binaries.succeed_here(train, settings, tmp_path / "own")
    row = json.loads((tmp_path / "own" / "result.json").read_text())
    choice = row["choice"]
    losses = {line["learning_rate"]: line["loss"] for line in choice["tried"]}
    assert [*losses] == [0.0025, 0.02, 0.16, 1.28] and row["learning_rate"] == min(losses, key=losses.__getitem__)
    assert f"learning rate {row['learning_rate']:g}, of 0.0025" in progress
    assert choice["images"] == 6 and choice["from"] == "validation split" and row["validation"] == "held-out images"
    adapter = read_adapter(tmp_path / "own" / "adapter.safetensors")
    assert adapter.notes["choice"] == choice and adapter.notes["zero_shot_accuracy"] == row["zero_shot_accuracy"]
    assert f"| learning rate | {row['learning_rate']:g}, selected from 0.0025, 0.02" in model_card(
        adapter.bind(clipbias.load(model)), "adapter"
    )
    # The same command takes it from the folder; other settings are refused there before anything is trained.
    monkeypatch.setattr("clipbias.training.run.select_settings", lambda *_, **__: pytest.fail("selected again"))
    binaries.succeed_here(train, settings, tmp_path / "own")
    if row["accuracy"] > row["zero_shot_accuracy"]:
        refusal = binaries.refusal_here(train, settings | {"epochs": 7}, tmp_path / "own")
        assert "holds the adapter of a run with other settings (recipe" in refusal
    # A rate that is given is taken, and a sweep goes into another folder.
    binaries.succeed_here(train, settings | {"learning_rate": row["learning_rate"]}, tmp_path / "given")
    result = json.loads((tmp_path / "given" / "result.json").read_text())
    assert result["learning_rate"] == row["learning_rate"] and result["accuracy"] == row["accuracy"]
    assert result["validation"] == "none" and "choice" not in result
    grid = {"model": str(model), "datasets": ("folder",), "data_dir": str(pictures), "methods": ("bias",)}
    grid |= {"shots": (2,), "epochs": 2, "batch_size": 6, "seeds": (1,)}
    refusal = binaries.refusal_here(table1, grid, tmp_path / "given")
    assert "given holds the adapter of a `train` run (adapter.safetensors), which" in refusal
    (tmp_path / "sweep" / "adapters").mkdir(parents=True)
    refusal = binaries.refusal_here(train, settings | {"learning_rate": 0.02}, tmp_path / "sweep")
    assert "holds the adapters of `table1` (adapters/), which" in refusal


def small_sweep(model: Path, workdir: Path) -> int:
    """The status of a small sweep."""
    config = configs.demo.get_config()
    config.update(model=str(model), methods=("zero_shot", "vpt"), datasets=("demo/digits",), shots=(1,), seeds=(1,))
    config.update(epochs=3, eval_batch_size=100)
    config.mesh.data = 1
    return common.answer(table1.main, config, str(workdir))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of an undisturbed sweep."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    assert small_sweep(model, folder) == 0
    return binaries.results(folder)


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "name", "call", "number", "status", "sentence"),
    [
        # While the last step is awaited, and in an evaluation.
        (loop.StepReport, "catch_up", 3, signal.SIGINT, 130, "stopped"),
        (forward, "image_features", 2, signal.SIGTERM, 143, "stopped; the same command continues."),
    ],
)
def test_a_stopped_sweep(where, name, call, number, status, sentence, model, whole, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with helpers.signal_at(where, name, call, number):
        assert small_sweep(model, tmp_path) == status
    assert sentence in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob(f"{PART}*"))
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "interrupted"
    assert small_sweep(model, tmp_path) == 0
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
