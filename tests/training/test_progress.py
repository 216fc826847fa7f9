"""What a training says on the way: on a terminal and elsewhere, in metrics.jsonl, to trackers and the profiler."""

import io
import json
import sys
import time
from importlib.machinery import ModuleSpec
from unittest import mock

import jax
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.training import progress
from clipbias.training.progress import TRACKERS, MetricWriter, Progress, StepReport, check_trackers
from tests.training.conftest import group, train_runs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_it_shows_the_work_its_values_and_the_time_left(stream, monkeypatch):
    """Two groups of 2 and 1 runs: after 3 of 4 steps of the first, 1.5 of 3 runs are done."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr("sys.stderr", shown := stream())
    whole = Progress(3, title="runs")
    part = whole.part(2, "bias on digits")
    part.at_work("compiling")
    part.start(4)
    for seconds in (600.0, 20.0, 20.0):  # the first step compiles
        now += seconds
        part.advance()
    part.close()
    second = whole.part(1, "bias on fashion")
    second.start(4)
    now += 200.0  # it compiles, too
    second.advance(2)
    whole.advance_to(3, {"lr": 0.0025, "images/s": 133512.4})
    whole.say("a line")
    whole.close()
    for words in ("bias on digits: compiling", "a line", "1.5/3, about 60 s left", "2/3, about 7 min", "lr=0.0025"):
        assert words in shown.getvalue()
    assert ("\r" in shown.getvalue()) == shown.isatty()


def test_the_rate_is_that_of_the_steps_behind_the_first(monkeypatch):
    now, shown = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bar = mock.Mock(advance=lambda count, values: shown.append(values.get("images/s")))
    report = StepReport("bias", [1], bar, None, images=32)
    for step, seconds in enumerate((100.0, 3.0, 1.0), start=1):  # the first step compiles
        now += seconds
        report.step(step, {"loss": np.ones(1)}, np.ones(1))
        report.catch_up()
    assert shown == [None, 32 / 3, 2 * 32 / 4]


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
    modules = {name: mock.MagicMock(__spec__=ModuleSpec(module, None)) for name, module in TRACKERS.items()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, TRACKERS[name], module)
    return modules


def test_every_tracker_is_told_every_number(installed, tmp_path):
    folder = tmp_path / "runs" / "ivlp-digits"
    folder.mkdir(parents=True)
    with MetricWriter(folder, trackers=("tensorboard", "wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": [0.5, 0.25], "learning_rate": 1e-5, "note": "not a number"})
        metrics.write(2, {"loss": [0.4, 0.2], "learning_rate": 1e-3})
    first = {"loss/0": 0.5, "loss/1": 0.25, "learning_rate": 1e-5}
    told = [first, {"loss/0": 0.4, "loss/1": 0.2, "learning_rate": 1e-3}]
    named = {"project": "clipbias", "name": "runs-ivlp-digits", "resume": "allow"}
    of_wandb = {"id": "runs-ivlp-digits", "dir": str(folder)}
    for name, options in (("trackio", named), ("wandb", named | of_wandb)):
        assert installed[name].init.mock_calls[0] == mock.call(**options)
        run = installed[name].init.return_value
        assert run.log.mock_calls == [mock.call(values, step=step) for step, values in enumerate(told, start=1)]
        run.finish.assert_called_once_with()
    scalars = [mock.call(*number, step) for step, values in enumerate(told, start=1) for number in values.items()]
    writer = installed["tensorboard"].SummaryWriter.return_value
    assert writer.add_scalar.mock_calls == scalars and writer.close.called


def test_trackers_that_are_not_there_fail_or_do_not_start(installed, tmp_path, monkeypatch):
    writer, wandb, trackio = installed["tensorboard"].SummaryWriter, installed["wandb"].init, installed["trackio"].init
    MetricWriter(tmp_path).close()
    assert writer.called and not wandb.called and not trackio.called  # TensorBoard by itself
    with MetricWriter(tmp_path, trackers=("wandb", "trackio")) as metrics:
        metrics.write(1, {"loss": 1.0})
        wandb.return_value.log.side_effect = ZeroDivisionError("division by zero")
        metrics.write(2, {"loss": 0.5})
        metrics.write(3, {"loss": 0.25})
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
    assert check_trackers(("auto",)) == []


# Traces


@pytest.mark.parametrize(
    ("first", "total", "traced"), [(0, 100, range(2, 7)), (40, 100, range(42, 47)), (0, 4, range(4))]
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
