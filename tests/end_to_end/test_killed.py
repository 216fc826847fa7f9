"""`kill -9` at random moments: the continued run ends with the same bits as an undisturbed one, and leaves no more."""

import dataclasses
import json
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clipbias.clip import Clip
from clipbias.data import demo
from clipbias.tuning import Task
from clipbias.tuning.adapter import save_adapter
from tests.end_to_end import binaries
from tests.forks import ROOT, Fork
from tools.disturb import COMMANDS, NOTHING, Trials, comparable, disturb

# A part of the steps, cells and figures, in a part of the time. What `train` does is done by a grid of one cell.
SMALLER = {
    "table1": "--config.epochs=2 --config.shots=(4,) --config.methods=('upl','vpt')",
    "explain": "--config.figures=vision_attention",
}


def smaller(arguments: str, anew: str) -> str:
    """Arguments with those of `anew` in place of their own: a tuple that is given twice would have both."""
    names = {one.partition("=")[0] for one in anew.split()}
    return " ".join([*(one for one in arguments.split() if one.partition("=")[0] not in names), anew])


class Forked(Trials):
    """Its processes have imported the libraries when they start, so that the kill comes while they work."""

    def start(self, module: str, arguments: str, environment: Mapping[str, str] = NOTHING) -> Any:
        words = arguments.format(**self.names).split()
        return Fork(module, *words, environment={**self.environment, **environment})


@pytest.mark.parametrize("name", SMALLER)
def test_nothing_is_lost(name: str, model: Path, clip: Clip, cache: Path, tmp_path: Path) -> None:
    """One kill; `python -m tools.disturb` is for many."""
    environment = binaries.environment(cache)
    command = dataclasses.replace(COMMANDS[name], arguments=smaller(COMMANDS[name].arguments, SMALLER[name]), before=())
    if name == "explain":
        task = Task(clip, "ivlp", demo.load("demo/digits").class_names)
        save_adapter(tmp_path / "trained" / "adapter.safetensors", task, task.init())
    assert disturb(Forked(command, tmp_path, model, environment), 1, random.Random(), twice=False) == []


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    """The comparison itself: a file in the making, a changed file and a missing one are told."""
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints" / "12").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "12" / "made").write_text(name)
        (tmp_path / name / "result.json").write_text(json.dumps({"accuracy": 1.0, "seconds": ord(name)}))
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b") != {}
    (tmp_path / "b" / "result.json").write_text('{"accuracy": 2.0}')
    (tmp_path / "b" / ".clipbias-part-x.json").write_text("{}")
    first, second = comparable(tmp_path / "a"), comparable(tmp_path / "b")
    assert {name for name in second if second[name] != first.get(name)} == {".clipbias-part-x.json", "result.json"}


@pytest.mark.parametrize("package", ["experiments", "tools"])
def test_forks_watch_before_they_import_anything(package: str, cache: Path, tmp_path: Path) -> None:
    """As processes do, so that a signal finds in a fork what it would find in them."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").symlink_to(ROOT / package / "__init__.py")
    (tmp_path / package / "slow.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    process = Fork(f"{package}.slow", environment=binaries.environment(cache), folder=tmp_path)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n"), said[:8]) == (143, 1, "stopped;"), json.dumps(said)
