"""A signal at an awkward moment: the binaries save, clean up, say so and end with its status; then they continue."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import configs.demo
import configs.explain
import experiments.explain
import experiments.table1
from clipbias.clip import Clip
from clipbias.explain import study
from clipbias.io import PART, write_text
from clipbias.training import evaluator, loop
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import save_adapter
from experiments import common
from tools.disturb import comparable


def notice_at(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal during the given call of a function."""
    original, calls = getattr(where, name), 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, called)


def answer(model: Path, workdir: Path) -> int:
    """`table1` on a grid of two cells."""
    config = configs.demo.get_config()
    config.model, config.methods, config.datasets = str(model), ("zero_shot", "vpt"), ("demo/digits",)
    config.shots, config.seeds, config.epochs, config.eval_batch_size, config.mesh.data = (1,), (1,), 3, 100, 1
    return common.answer(experiments.table1.main, config, str(workdir))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed one leaves."""
    folder = tmp_path_factory.mktemp("grid") / "whole"
    assert answer(model, folder) == 0
    return comparable(folder)


@pytest.mark.parametrize(
    ("where", "name", "call", "said"),
    [
        (loop, "train_step", 2, "stopped at step 2 of"),
        (loop.StepReport, "catch_up", 3, "stopped at step 3 of 3"),  # while the last step is awaited
        (evaluator, "image_features", 2, "stopped; the same command continues."),
        (experiments.table1, "write_text", 2, "stopped; the same command continues."),
    ],
)
def test_table1(
    where: Any,
    name: str,
    call: int,
    said: str,
    model: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    notice_at(monkeypatch, where, name, call)
    assert answer(model, tmp_path / "cut") == 143
    assert said in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list((tmp_path / "cut").rglob(f"{PART}*"))
    monkeypatch.undo()
    assert answer(model, tmp_path / "cut") == 0
    assert comparable(tmp_path / "cut") == whole


def test_explain(model: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    names = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    task = Task(clip, "vpt", names)
    save_adapter(tmp_path / "a.safetensors", task, task.init())
    config = configs.explain.get_config()
    config.model, config.adapters, config.dataset = str(model), str(tmp_path / "a.safetensors"), "demo/digits"
    config.batch_size, config.image_limit, config.figures, config.mesh.data = 16, 64, "vision_attention", 1
    assert common.answer(experiments.explain.main, config, str(tmp_path / "whole")) == 0
    notice_at(monkeypatch, study, "merge", 6)
    assert common.answer(experiments.explain.main, config, str(tmp_path / "cut")) == 143
    assert "stopped; the same command continues." in capsys.readouterr().err
    assert list((tmp_path / "cut" / "parts").glob("*.npz"))
    monkeypatch.undo()
    assert common.answer(experiments.explain.main, config, str(tmp_path / "cut")) == 0
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "cut")


def test_the_end_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all is written but the record of the run, the run was interrupted."""
    notice_at(monkeypatch, os, "replace", 4, signal.SIGINT)

    def write(config: Any, workdir: Path) -> None:
        with open_workdir(workdir, {}):
            write_text(workdir / "result.json", "{}")

    write.__module__ = experiments.table1.__name__
    monkeypatch.setattr(common, "own_config", lambda main: configs.demo.get_config())
    assert common.answer(write, configs.demo.get_config(), str(tmp_path)) == 130
    assert (tmp_path / "result.json").exists()
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "interrupted"
    assert not list(tmp_path.glob(f"{PART}*"))
