"""What a training says on the way: on a terminal and elsewhere, in metrics.jsonl, to trackers and the profiler."""

import importlib.machinery
import io
import itertools
import json
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import logging

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.training import progress
from clipbias.training.progress import (
    TRACKERS,
    MetricWriter,
    Progress,
    StepReport,
    check_trackers,
    forecast,
    readable,
)
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import group, train_runs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_it_shows_the_work_the_values_and_the_end(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is measured by a clock that only goes forward: the wall's is set back again and again."""
    later, ticks = itertools.count(), itertools.count(step=10.0)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(later))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr("sys.stderr", shown := stream())
    bar = Progress(0, title="cells")
    bar.advance()
    assert not shown.getvalue()  # nothing is counted before a total is known
    bar.start(3)
    for _ in range(3):
        bar.at_work("bias on demo/digits, 4 shots")
        bar.advance(1, {"lr": 0.0025, "images/s": 133512.4})
    bar.say("a line")
    bar.close()
    for part in ("cells", "bias on demo/digits, 4 shots", "images/s=133,512", "lr=0.0025", " 3/3", "a line\n"):
        assert part in shown.getvalue(), part
    assert ("\r" in shown.getvalue()) == shown.isatty()
    assert "-" not in shown.getvalue().replace("\x1b", "")  # no negative duration
    assert not shown.isatty() or all(f" {done}/3," in shown.getvalue() for done in (1, 2, 3))


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_time_left_is_told_from_the_first_batches(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen batches of thirty seconds each are eight minutes, of which seven are left after two."""
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    with progress.progress(16, title="measurements") as bar:
        for _ in range(16):
            now += 30.0
            bar.advance()
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.getvalue()) if line.strip()]
    assert "left" not in lines[0] and " 0/16" in lines[0]
    (second,) = [line for line in lines if " 2/16" in line]
    assert ", about 7 min left" in second
    assert any(" 15/16, about 30 s left" in line for line in lines) and "left" not in lines[-1]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_steps_of_a_part_move_the_whole_and_stages_are_named(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups of 2 and 1 runs: after 3 of 4 steps of the first, 1.5 of 3 runs are done; the second counts none."""
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    whole = Progress(3, unit="run", title="runs")
    part = whole.part(2, "bias on digits")
    part.at_work("compiling")
    part.start(4)
    for _ in range(3):
        now += 20.0
        part.advance()
    part.say("of a part")
    part.close()
    whole.advance_to(2)
    now += 20.0
    whole.part(1, "coop on digits").at_work("evaluating")
    whole.advance_to(3)
    whole.close()
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.getvalue()) if line.strip()]
    assert any(" 1.5/3, about 60 s left" in line for line in lines) and " 3/3" in lines[-1]
    for stage in ("bias on digits: compiling", "coop on digits: evaluating"):
        assert any(line.startswith(stage) for line in lines)
    assert "of a part" not in shown.getvalue()


def test_numbers_and_forecasts_are_round_and_lines_elsewhere_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [readable(value) for value in (133500.4, 412.0, 0.0025, 1e-5)] == ["133,500", "412", "0.0025", "1e-05"]
    said = [" ".join(forecast(seconds).split()[1:3]) for seconds in (2.0, 44.0, 89.0, 100.0, 3600.0, 3 * 3600.0)]
    assert said == ["10 s", "40 s", "90 s", "2 min", "60 min", "3 h"]
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    with progress.progress(100, title="steps") as bar:
        for _ in range(100):
            bar.advance()
    first, last = shown.getvalue().splitlines()
    assert first.startswith("steps 0/100") and last.startswith("steps 100/100")


# metrics.jsonl


def test_steps_that_are_done_again_are_there_once(tmp_path: Path) -> None:
    def lines() -> list[tuple]:
        return [(line["step"], line["loss"]) for line in read_json_lines(tmp_path / "metrics.jsonl")]

    with MetricWriter(tmp_path, steps=9) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0})
    with MetricWriter(tmp_path, start_step=3, steps=9) as metrics:
        metrics.write(3, {"loss": 2.0})
    assert lines() == [(1, 1.0), (2, 1.0), (3, 2.0)]
    opened = MetricWriter(tmp_path, start_step=4)
    assert len(lines()) == 3  # on disk, though the process may be killed before its first step
    opened.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short
    with MetricWriter(tmp_path, start_step=4) as metrics:
        metrics.write(4, {"loss": 1.0})
    assert lines() == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 1.0)]


def told(clock: list[float], waiting: list[float] | None, key: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a progress is told of steps at these moments, a step later each."""
    shown, now = [], [0.0, 0.0]
    bar = types.SimpleNamespace(advance=lambda count, values: shown.append(values.get(key)))
    monkeypatch.setattr("clipbias.training.progress.time.monotonic", lambda: now[0])
    values = {"loss": np.ones(1), "accuracy": np.ones(1), "gradient_norm": np.ones(1)}
    report = StepReport("Bias", [1], bar, None, images=40, waiting=waiting and (lambda: now[1]))
    for step, moment in enumerate(clock, 1):
        now[:] = moment, waiting[step - 1] if waiting else 0.0
        report.step(step, values, np.ones(1))
    report.catch_up()  # the last is there at once
    return shown


def test_the_progress_shows_what_share_is_waited_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the share of the moment; images a second are a mean without the first step."""
    assert told([0, 1, 2], [0.0, 0.127, 1.0], "waiting", monkeypatch) == ["13%", "100%", "100%"]
    assert told([0, 1, 2], None, "waiting", monkeypatch) == [None] * 3
    assert told([0, 60, 70, 80], None, "images/s", monkeypatch) == [None, 4.0, 4.0, 6.0]


def test_a_training_takes_its_steps_times_their_median_whatever_compiling_took(tmp_path: Path) -> None:
    # The first step compiles, and so does the fourth: the run was stopped before it, and continued.
    seconds = [9.0, 1.0, 1.0, 8.0, 2.0, *(0.5,) * 3, 7.0, 0.25]
    lines = [json.dumps({"step": number + 1, "seconds": value}) for number, value in enumerate(seconds)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"cut short']) + "\n")
    assert progress.step_seconds(path, [5]) == 5 * 2.0
    assert progress.step_seconds(path, [5, 5]) == 5 * 2.0 + 5 * 0.5  # stages count by themselves
    assert progress.step_seconds(path, []) == progress.step_seconds(tmp_path / "none.jsonl", [5]) == 0


def test_a_stopwatch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    watch = progress.Stopwatch()
    for _ in range(2):
        with watch:
            pass
    assert watch.seconds == 5.0


# Trackers


class Recorder:
    """What TensorBoard's writer, Weights & Biases and trackio have in common here: it notes what it is told."""

    def __init__(self, *folder: str, **options: Any) -> None:
        self.options = options | ({"folder": folder[0]} if folder else {})
        self.told: list[tuple] = []
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

        def make(*folder: str, **options: Any) -> Recorder:
            opened[name].append(Recorder(*folder, **options))
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


def test_trackers_that_are_not_there_fail_or_do_not_start(
    installed: dict[str, list[Recorder]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MetricWriter(tmp_path).close()
    assert [len(opened) for opened in installed.values()] == [1, 0, 0]  # TensorBoard by itself
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
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(ClipbiasError, match=r"wandb does not start \(ZeroDivisionError: .*leave it out of --config"):
        MetricWriter(tmp_path, trackers=("tensorboard", "wandb"))
    assert installed["tensorboard"][1].closed
    for module in ("trackio", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ClipbiasError, match="trackers has 'trackio', which needs trackio: pip install trackio"):
        check_trackers(("trackio",))
    assert check_trackers(("auto",)) == [] and check_trackers(()) == []


# Traces


@pytest.mark.parametrize(
    ("first", "total", "traced"),
    [(0, 100, range(2, 7)), (40, 100, range(42, 47)), (0, 4, range(4)), (97, 100, range(97, 100))],
)
def test_which_steps_are_traced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int, total: int, traced: range
) -> None:
    running: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: running.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)
    steps = progress.StepProfile(tmp_path, first=first, total=total)
    steps_traced = []
    for step in range(first, total):
        steps.before(step)
        steps_traced += [step] * len(running)
        steps.after(step, {})
    assert steps_traced == list(traced) and not running
    again = progress.StepProfile(tmp_path, first=0, total=50)  # a training that ends early ends its trace
    for step in range(3):
        again.before(step)
    assert running == [str(tmp_path / "profile")]
    again.close()
    assert not running


@pytest.mark.ci  # the profiler takes 300 MB for good
def test_the_trace_of_a_training_lies_beside_its_metrics(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    train_runs(*group(clip, colours, "bias", (1,)), recipe, metrics=tmp_path, profile=True)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
