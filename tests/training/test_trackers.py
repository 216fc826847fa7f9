"""Metrics reach those who are told them, here stand-ins for the programs that users install."""

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
from absl import logging

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.training.progress import TRACKERS, MetricWriter, check_trackers


class Recorder:
    """What TensorBoard's writer, Weights & Biases and trackio have in common here: it notes what it is told."""

    def __init__(self, **options) -> None:
        self.options = options
        self.told = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((step, name, value))

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.told += [(step, name, value) for name, value in values.items()]

    def close(self) -> None:
        self.closed = True

    finish = close


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Recorder]]:
    """Stand-ins for all three, and what was opened of each."""
    opened: dict[str, list[Recorder]] = {name: [] for name in TRACKERS}

    def stand_in(name: str) -> types.ModuleType:
        module = types.ModuleType(TRACKERS[name][0])
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)

        def make(*arguments, **options) -> Recorder:
            opened[name].append(Recorder(**options, **({"folder": arguments[0]} if arguments else {})))
            return opened[name][-1]

        module.init = module.SummaryWriter = make
        return module

    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, TRACKERS[name][0], stand_in(name))
    return opened


def test_every_tracker_is_told_every_number(installed: dict[str, list[Recorder]], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ivlp-digits"
    folder.mkdir(parents=True)
    with MetricWriter(folder, trackers=("tensorboard", "wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": [0.5, 0.25], "learning_rate": 1e-5, "note": "not a number"})
        metrics.write(2, {"loss": [0.4, 0.2], "learning_rate": 1e-3})
    first = [(1, "loss/0", 0.5), (1, "loss/1", 0.25), (1, "learning_rate", 1e-5)]
    for name, (recorder,) in installed.items():
        assert recorder.told == [*first, (2, "loss/0", 0.4), (2, "loss/1", 0.2), (2, "learning_rate", 1e-3)], name
        assert recorder.closed
    assert installed["tensorboard"][0].options == {"folder": str(folder / "tensorboard")}
    named = {"project": "clipbias", "name": "runs-ivlp-digits", "resume": "allow"}
    assert installed["trackio"][0].options == named
    assert installed["wandb"][0].options == named | {"id": "runs-ivlp-digits", "dir": str(folder)}


def test_without_a_word_it_is_tensorboard_where_it_is_installed(
    installed: dict[str, list[Recorder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MetricWriter(tmp_path).close()
    assert [len(opened) for opened in installed.values()] == [1, 0, 0]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert check_trackers(("auto",)) == [] and check_trackers(()) == []


def test_one_that_fails_on_the_way_costs_no_step(
    installed: dict[str, list[Recorder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    with MetricWriter(tmp_path, trackers=("wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": 1.0})
        monkeypatch.setattr(installed["wandb"][0], "log", lambda *_, **__: 1 / 0)
        metrics.write(2, {"loss": 0.5})
        metrics.write(3, {"loss": 0.25})
    assert warnings == ["wandb gets no more metrics (ZeroDivisionError: division by zero); metrics.jsonl has all."]
    assert [step for step, *_ in installed["trackio"][0].told] == [1, 2, 3]
    assert [line["loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 0.25]


def test_one_that_does_not_start_or_is_not_there_is_one_sentence(
    installed: dict[str, list[Recorder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ClipbiasError, match="trackers has 'trackio', which needs trackio: pip install trackio"):
        check_trackers(("trackio",))
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(ClipbiasError, match=r"wandb does not start \(ZeroDivisionError: .*leave it out of --config"):
        MetricWriter(tmp_path, trackers=("tensorboard", "wandb"))
    assert installed["tensorboard"][0].closed
