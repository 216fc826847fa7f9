"""What a training says on the way: on a terminal and elsewhere, in metrics.jsonl, to trackers and the profiler."""

import contextlib
import io
import itertools
import json
import re
import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from absl import logging

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.training import progress
from clipbias.training.progress import TRACKERS, MetricWriter, Progress, StepReport, check_trackers, forecast, readable
from tests.training.conftest import group, train_runs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_it_shows_the_work_its_values_and_the_time_left(stream, monkeypatch):
    """Two groups of 2 and 1 runs: after 3 of 4 steps of the first, 1.5 of 3 runs are done; the second counts none.

    Time is measured by a clock that only goes forward: the wall's is set back again and again.
    """
    now, later = 0.0, itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(later))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    whole = Progress(unit="run", title="runs")
    whole.advance()
    assert not shown.getvalue()  # nothing is counted before a total is known
    whole.start(3)
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
    whole.advance_to(3, {"lr": 0.0025, "images/s": 133512.4})
    whole.say("a line")
    longer = whole.part(1, "one more")
    longer.start(2)
    longer.advance(2)
    whole.close()
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.getvalue()) if line.strip()]
    assert "left" not in lines[0] and " 0/3" in lines[0]
    assert any(" 1.5/3, about 60 s left" in line for line in lines)
    for words in ("bias on digits: compiling", "coop on digits: evaluating", "a line"):
        assert any(line.startswith(words) for line in lines), words
    assert "images/s=133,512" in shown.getvalue() and "lr=0.0025" in shown.getvalue() and " 4/4" in lines[-1]
    assert "of a part" not in shown.getvalue() and ("\r" in shown.getvalue()) == shown.isatty()
    assert "-" not in shown.getvalue().replace("\x1b", "")  # no negative duration


def test_a_bar_is_drawn_again_while_nothing_is_counted(monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with contextlib.closing(Progress(3, title="compiling")):
        began, drawn = time.monotonic(), len(shown.getvalue())
        while len(shown.getvalue()) == drawn and time.monotonic() < began + 60:
            time.sleep(0.05)
        assert re.search(r"compiling.* 0/3, 00:\d\d", shown.getvalue()[drawn:])


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_stage_before_the_first_step_has_a_clock_on_a_terminal_and_a_line_elsewhere(stream, monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := stream())
    for is_shown in (False, True):
        with contextlib.closing(Progress(title="bias on digits", shown=is_shown)) as bar:
            bar.at_work("compiling a step")
            bar.advance()
            assert ("bias on digits: compiling a step" in shown.getvalue()) == is_shown
            assert ("compiling a step, 00:00" in shown.getvalue()) == (is_shown and shown.isatty())
            bar.start(8)
            bar.advance(8)
            bar.at_work("evaluating")  # which is no step
        assert ("8/8" in shown.getvalue()) == is_shown
        assert ("evaluating, 00:00" in shown.getvalue()) == (is_shown and shown.isatty())
    assert not re.search(r"evaluating.*8/8", shown.getvalue())
    # The steps' bar is where the clock was; elsewhere it is there when it begins and when it ends.
    assert shown.getvalue().count("\n") == (1 if shown.isatty() else 3)


def test_numbers_and_forecasts_are_round_and_lines_elsewhere_are_few(monkeypatch):
    assert [readable(value) for value in (133500.4, 412.0, 0.0025, 1e-5)] == ["133,500", "412", "0.0025", "1e-05"]
    said = [" ".join(forecast(seconds).split()[1:3]) for seconds in (2.0, 44.0, 89.0, 100.0, 3600.0, 3 * 3600.0)]
    assert said == ["10 s", "40 s", "90 s", "2 min", "60 min", "3 h"]
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    with contextlib.closing(Progress(100, title="steps")) as bar:
        for _ in range(100):
            bar.advance()
    Progress(3, done=3, title="all").close()
    with contextlib.closing(Progress(3, title="runs")) as bar:
        bar.advance(2.97)
    first, last, done, none, most = shown.getvalue().splitlines()
    assert first.startswith("steps 0/100") and last.startswith("steps 100/100")
    assert done == "all 3/3" and none == "runs 0/3" and most.startswith("runs 2.9/3")


# metrics.jsonl


def test_steps_that_are_done_again_are_there_once(tmp_path):
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


def test_the_progress_shows_what_share_is_waited_for_images(monkeypatch):
    """With the share of the moment; images a second are a mean without the first step."""
    assert told([0, 1, 2], [0.0, 0.127, 1.0], "waiting", monkeypatch) == ["13%", "100%", "100%"]
    assert told([0, 1, 2], None, "waiting", monkeypatch) == [None] * 3
    assert told([0, 60, 70, 80], None, "images/s", monkeypatch) == [None, 4.0, 4.0, 6.0]


def test_a_training_takes_its_steps_times_their_median_whatever_compiling_took(tmp_path):
    # The first step compiles, and so does the fourth: the run was stopped before it, and continued.
    seconds = [9.0, 1.0, 1.0, 8.0, 2.0, *(0.5,) * 3, 7.0, 0.25]
    lines = [json.dumps({"step": number + 1, "seconds": value}) for number, value in enumerate(seconds)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"cut short']) + "\n")
    assert progress.step_seconds(path, [5]) == 5 * 2.0
    assert progress.step_seconds(path, [5, 5]) == 5 * 2.0 + 5 * 0.5  # stages count by themselves
    assert progress.step_seconds(path, []) == progress.step_seconds(tmp_path / "none.jsonl", [5]) == 0


# Trackers


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, mock.MagicMock]:
    """Stand-ins for all three packages."""
    modules = {name: mock.MagicMock(__spec__=ModuleSpec(module, None)) for name, (module, _) in TRACKERS.items()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, TRACKERS[name][0], module)
    return modules


def test_every_tracker_is_told_every_number(installed, tmp_path):
    folder = tmp_path / "runs" / "ivlp-digits"
    folder.mkdir(parents=True)
    with MetricWriter(folder, trackers=("tensorboard", "wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": [0.5, 0.25], "learning_rate": 1e-5, "note": "not a number"})
        metrics.write(2, {"loss": [0.4, 0.2], "learning_rate": 1e-3})
    told = [
        {"loss/0": 0.5, "loss/1": 0.25, "learning_rate": 1e-5},
        {"loss/0": 0.4, "loss/1": 0.2, "learning_rate": 1e-3},
    ]
    named = {"project": "clipbias", "name": "runs-ivlp-digits", "resume": "allow"}
    of_wandb = {"id": "runs-ivlp-digits", "dir": str(folder)}
    for name, options in (("trackio", named), ("wandb", named | of_wandb)):
        assert installed[name].init.mock_calls[0] == mock.call(**options)
        run = installed[name].init.return_value
        assert run.log.mock_calls == [mock.call(values, step=step) for step, values in enumerate(told, start=1)]
        run.finish.assert_called_once_with()
    writer = installed["tensorboard"].SummaryWriter
    assert writer.mock_calls[0] == mock.call(str(folder / "tensorboard"))
    scalars = [mock.call(*number, step) for step, values in enumerate(told, start=1) for number in values.items()]
    assert writer.return_value.add_scalar.mock_calls == scalars
    writer.return_value.close.assert_called_once_with()


def test_trackers_that_are_not_there_fail_or_do_not_start(installed, tmp_path, monkeypatch):
    writer, wandb, trackio = (
        *(installed["tensorboard"].SummaryWriter, installed["wandb"].init, installed["trackio"].init),
    )
    MetricWriter(tmp_path).close()
    assert writer.called and not wandb.called and not trackio.called  # TensorBoard by itself
    warnings: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    with MetricWriter(tmp_path, trackers=("wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": 1.0})
        wandb.return_value.log.side_effect = ZeroDivisionError("division by zero")
        metrics.write(2, {"loss": 0.5})
        metrics.write(3, {"loss": 0.25})
    assert warnings == ["wandb gets no more metrics (ZeroDivisionError: division by zero); metrics.jsonl has all."]
    assert trackio.return_value.log.call_count == 3
    assert [line["loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 0.25]
    wandb.side_effect = ZeroDivisionError
    with pytest.raises(ClipbiasError, match=r"wandb does not start \(ZeroDivisionError.*leave it out of --config"):
        MetricWriter(tmp_path, trackers=("tensorboard", "wandb"))
    assert writer.return_value.close.call_count == writer.call_count == 2
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
def test_which_steps_are_traced(monkeypatch, tmp_path, first, total, traced):
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
def test_the_trace_of_a_training_lies_beside_its_metrics(clip, colours, recipe, tmp_path):
    train_runs(*group(clip, colours, "bias", (1,)), recipe, metrics=tmp_path, profile="steps")
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
