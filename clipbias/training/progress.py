"""Reports of a training: progress for people, metrics of steps, a trace of a few steps, and seconds.

Progress is a tqdm bar on a terminal and plain lines elsewhere. Metrics are JSON lines on disk, and go to TensorBoard,
Weights & Biases or trackio on demand.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from clipbias.constants import SECONDS_BETWEEN_LINES
from clipbias.errors import ClipbiasError, sentence
from clipbias.io import data_path, is_remote, read_json_lines, write_text
from clipbias.terminal import printable
from clipbias.training import placement

SECONDS_BETWEEN_STAGES = 2.0


class _Lines:
    """Writes each different state of a bar as a line, where tqdm would draw over the last one."""

    _last = ""

    def write(self, text: str) -> None:
        if (line := text.strip("\r\n ")) and line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line

    def flush(self) -> None:
        pass


class _Bar(tqdm):
    """Bar that forecasts the remaining time, from the units and seconds since `timed_from`: its first update."""

    timed_from: tuple[float, float] | None = None

    def update(self, n: float | None = 1) -> bool | None:
        if n and self.timed_from is None and not self.disable:  # before, a program was compiled
            self.timed_from = self.n + n, self.format_dict["elapsed"]
        return super().update(n)

    @property
    def format_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = dict(super().format_dict)
        units, seconds = self.timed_from or (facts["n"], 0.0)
        done = facts["n"] - units
        remaining = (facts["total"] or 0) - facts["n"]
        left = remaining * (facts["elapsed"] - seconds) / done if done > 0 else 0
        facts["left"] = f", {forecast(left)}" if left > 0 else ""
        # Rounded down: the total stands there only at the end.
        facts["done"] = f"{math.floor(10 * facts['n'] + 1e-6) / 10:.1f}".removesuffix(".0")
        return facts


def _tick(bar: tqdm) -> None:
    """Redraws a bar every second until it is closed, so that its clock goes on while a program compiles."""
    while not bar.disable:
        time.sleep(1.0)
        bar.refresh()


class Progress:
    """Progress of units of work, and the name of the current stage, so that nothing is silent for long.

    A bar with a clock on a terminal; elsewhere a line every ten seconds, and for a stage. Its maker closes it.
    """

    def __init__(self, total: int = 0, *, done: int = 0, title: str = "", shown: bool = True) -> None:
        self._title = printable(title)
        self.shown = shown
        self._bar: _Bar | None = None
        self._named = float("-inf")  # when a stage had a line
        if total:
            self.start(total, done=done)

    def start(self, total: int, *, done: int = 0) -> None:
        self.close()
        self._total = total
        shared: dict[str, Any] = {"total": total, "initial": done, "desc": self._title}
        if sys.stderr.isatty():
            drawn = "{l_bar}{bar:10}| {done}/{total_fmt}{left}, {elapsed}{postfix}" if total else "{desc}, {elapsed}"
            shared |= {"file": sys.stderr, "dynamic_ncols": True, "bar_format": drawn, "leave": total > 0}
        else:
            shared |= {"file": _Lines(), "mininterval": SECONDS_BETWEEN_LINES, "miniters": 0}
            shared |= {"bar_format": "{desc} {done}/{total_fmt}{postfix}{left}"}
        self._bar = _Bar(disable=jax.process_index() != 0 or not self.shown, **shared)
        if sys.stderr.isatty():
            threading.Thread(target=_tick, args=(self._bar,), daemon=True).start()

    def part(self, units: float, title: str) -> "Progress":
        """Returns a part of `units`, which may count in steps."""
        # Each part compiles: from the second one on, forecasts count that time.
        if self._bar is not None and not self._bar.disable and self._bar.n > self._bar.initial:
            self._bar.timed_from = self._bar.initial, 0.0
        # A group that fails comes again rate by rate: then the whole has more units than it began with.
        if self._bar is not None and (needed := math.ceil(self._bar.n + units - 1e-6)) > self._total:
            self._total = self._bar.total = needed
        return _Part(self, units, title)

    def advance(self, count: float = 1, values: Mapping[str, Any] | None = None) -> None:
        if self._bar is None:
            return
        shown = {
            key: readable(value) if isinstance(value, float) else printable(value)
            for key, value in (values or {}).items()
        }
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(min(count, self._total - self._bar.n))

    def advance_to(self, done: float, values: Mapping[str, Any] | None = None) -> None:
        # Parts may have counted some of it.
        if self._bar is not None:
            self.advance(done - self._bar.n, values)

    def at_work(self, what: str) -> None:
        # The name of the stage that begins, such as "compiling". A finished bar is closed first: the stage belongs to
        # what follows.
        if self._bar is not None and self._bar.n >= self._total > 0:
            self.close()
        self._name(f"{self._title}: {what}" if self._title else what)

    def _name(self, stage: str) -> None:
        stage = printable(stage)
        at_once = sys.stderr.isatty()
        if self._bar is None and at_once:
            self.start(0)
        if self._bar is not None:
            self._bar.set_description_str(stage, refresh=at_once)
        if (self._bar is None or not at_once) and time.monotonic() - self._named > SECONDS_BETWEEN_STAGES:
            self._named = time.monotonic()
            self.say(stage)

    def say(self, line: str) -> None:
        if self.shown:
            say(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Part(Progress):
    """Part of another bar, which it moves by its share of the units."""

    def __init__(self, whole: Progress, units: float, title: str) -> None:
        # Prints no line: a sweep has hundreds of parts.
        super().__init__(0, title=title, shown=False)
        self._whole = whole
        self._units = units
        self._steps = 1.0
        self._own = 0.0  # of the steps
        self._moved = 0.0  # of the units

    def start(self, total: float, *, done: float = 0) -> None:
        self._steps, self._own = total, 0.0
        self.advance(done)

    def advance(self, count: float = 1, values: Mapping[str, Any] | None = None) -> None:
        self._own += count
        # Never backwards: each stage of a part starts its count anew.
        moved = max(self._moved, self._units * min(self._own / self._steps, 1.0))
        self._whole.advance(moved - self._moved, values)
        self._moved = moved

    def _name(self, stage: str) -> None:
        self._whole._name(stage)


def forecast(seconds: float) -> str:
    """`about 40 s left`, `about 4 min left`, `about 3 h left`."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {round(minutes / 60)} h left"


def readable(value: float) -> str:
    """A number as people write it: `133,500`, `412`, `0.0025`, `1e-05`."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def say(line: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(printable(line), file=sys.stderr)


AUTO_TRACKER = "auto"
PROJECT = "clipbias"

# A function that takes the numbers of a step, and a function that ends the record.
Tracker = tuple[Callable[[int, dict[str, float]], Any], Callable[[], Any]]


# Trackers by name, each with the package that must be installed.
TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def _open_tracker(name: str, folder: Path) -> Tracker:
    if name == "tensorboard":
        import tensorboardX

        writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

        def write(step: int, scalars: dict[str, float]) -> None:
            for scalar, value in scalars.items():
                writer.add_scalar(scalar, value, step)

        return write, writer.close
    # Named after its folder: a training that continues resumes the same record.
    record = "-".join(folder.resolve().parts[-2:])
    if name == "wandb":
        import wandb

        run = wandb.init(project=PROJECT, name=record, id=record, resume="allow", dir=str(folder))
    else:
        import trackio

        run = trackio.init(project=PROJECT, name=record, resume="allow")
    return lambda step, values: run.log(values, step=step), run.finish


def check_trackers(names: Sequence[str]) -> list[str]:
    """Returns the trackers of these names. Raises `ClipbiasError` for an unknown or missing one."""
    checked = []
    for name in names:
        tracker = "tensorboard" if name == AUTO_TRACKER else name
        if tracker not in TRACKERS:
            raise ClipbiasError(f"trackers has {name!r}; choose from {AUTO_TRACKER}, {', '.join(TRACKERS)}.")
        module = TRACKERS[tracker]
        # Looked for and not imported: trackers take seconds to import.
        if importlib.util.find_spec(module) is not None:
            checked.append(tracker)
        elif name != AUTO_TRACKER:
            raise ClipbiasError(f"trackers has {name!r}, which needs {module}: pip install {module}.")
    return list(dict.fromkeys(checked))


METRICS = "metrics.jsonl"


class MetricWriter(contextlib.AbstractContextManager["MetricWriter"]):
    """Appends metrics to `metrics.jsonl` in a folder, from process 0 alone.

    A run that continues drops the lines of steps that it repeats. Every line has the `steps` of the whole run.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        start_step: int = 0,
        steps: int | None = None,
        trackers: Sequence[str] = (AUTO_TRACKER,),
    ) -> None:
        """Raises `ClipbiasError` for a tracker that is unknown, not installed, or does not start."""
        self._file: Any = None
        self._trackers: dict[str, Tracker] = {}
        self._total = {} if steps is None else {"steps": steps}
        if jax.process_index() != 0:
            return
        self._path = path = data_path(folder) / METRICS
        earlier = [line for line in _step_lines(path) if line["step"] < start_step]
        if is_remote(path):
            trackers = [name for name in trackers if name not in (AUTO_TRACKER, "tensorboard")]
        text = "".join(json.dumps(line) + "\n" for line in earlier)
        # Replaced whole: a kill at this point loses no earlier line.
        write_text(path, text)
        for name in check_trackers(trackers):
            try:
                self._trackers[name] = _open_tracker(name, path.parent)
            except Exception as error:  # another program's refusal, such as a missing login
                self._close_trackers()
                raise ClipbiasError(
                    f"{name} does not start ({sentence(error)}); mend that, or leave it out of --config.trackers."
                ) from error
        # Buckets take whole objects alone: lines wait in memory until the end.
        if is_remote(path):
            self._file = StringIO(text)
            self._file.seek(0, os.SEEK_END)
        else:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line, and sends its numbers to the trackers, those of several runs as `loss/0`, `loss/1`, …"""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **self._total, **values}) + "\n")
            # At once: whoever follows the file sees every step, and a kill loses none.
            self._file.flush()
        except OSError as error:
            raise ClipbiasError(
                f"cannot write {self._path}: {error.strerror}; make room, or see to the disk, and run the same command "
                "again."
            ) from error
        scalars: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, list):
                scalars |= {f"{name}/{place}": number for place, number in enumerate(value)}
            elif isinstance(value, int | float):
                scalars[name] = value
        for name, (write, _) in list(self._trackers.items()):
            try:
                write(step, scalars)
            # A tracker is another program, often on another host. Its failure must not end the training.
            except Exception as error:
                logging.warning("%s gets no more metrics (%s); metrics.jsonl has all.", name, sentence(error))
                del self._trackers[name]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is None:
            return
        if isinstance(self._file, StringIO):
            write_text(self._path, self._file.getvalue())
        with contextlib.suppress(OSError):  # what could not be written was already reported
            self._file.close()
        self._file = None
        self._close_trackers()

    def _close_trackers(self) -> None:
        for _, close in self._trackers.values():
            with contextlib.suppress(Exception):  # no result depends on it
                close()


def _step_lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_json_lines(path) if isinstance(line.get("step"), int)]


@dataclasses.dataclass
class StepReport:
    """Reports progress and metrics of each step, one step late, so that the device never waits for the host."""

    method: str  # names the failing run, with its seed
    seeds: Sequence[int]
    progress: Progress
    metrics: MetricWriter | None
    _: dataclasses.KW_ONLY
    images: int  # of a step in all runs
    losses: Sequence[float] = ()  # of the restored step
    waiting: Callable[[], float] | None = None  # share of the time in which steps wait for images
    ends_on_failure: bool = True

    def __post_init__(self) -> None:
        # Not zero: a run that is stopped before its first report has no loss.
        self.losses = list(self.losses) or [float("nan") for _ in self.seeds]
        self._late: tuple[int, Any, np.ndarray] | None = None
        self._when = time.monotonic()
        # Time of the first report, whose step may have been compiled, and number of steps since. Their mean rate is
        # shown: single steps are reported at uneven times, as the host waits for the device.
        self._since: float | None = None
        self._timed = 0

    def step(self, step: int, metrics: Any, rate: np.ndarray) -> None:
        # The device may still compute these metrics; those of the step before are there.
        self.catch_up()
        self._late = (step, metrics, rate)

    def catch_up(self) -> None:
        """Reports the last step. Raises `ClipbiasError` for a loss that is not finite, with `ends_on_failure`."""
        if self._late is None:
            return
        step, values, rate = self._late
        self._late = None
        # Padding lies behind the runs.
        runs = slice(len(self.seeds))
        values = {name: np.asarray(value, np.float64)[runs] for name, value in placement.device_get(values).items()}
        if "accuracy" in values:
            values["accuracy"] = 100 * values["accuracy"]  # in percent, as everywhere
        for seed, loss in zip(self.seeds, values["loss"], strict=True):
            if self.ends_on_failure and not np.isfinite(loss):
                raise ClipbiasError(
                    f"the loss of {self.method} (seed {seed}) is {loss} at step {step}; "
                    "what was saved before is kept; lower --config.learning_rate or check the images."
                )
        self.losses = values["loss"].tolist()
        now = time.monotonic()
        seconds, self._when = now - self._when, now
        if self._since is None:
            self._since = now
        else:
            self._timed += 1
        shown: dict[str, Any] = {"loss": float(values["loss"].mean())}  # a narrow terminal cuts off the last
        if self.waiting is not None:
            shown["waiting"] = f"{self.waiting():.0%}"
        if self._timed:
            shown["images/s"] = self.images * self._timed / max(now - self._since, 1e-9)
        shown["lr"] = float(rate.max())
        self.progress.advance(1, shown)
        if self.metrics is not None:
            lines = {name: value.tolist() if len(value) > 1 else float(value[0]) for name, value in values.items()}
            rates = rate.tolist() if len(set(rate.tolist())) > 1 else float(rate[0])
            self.metrics.write(step, {**lines, "learning_rate": rates, "seconds": round(seconds, 4)})


# Steps before the trace, which compile and fill caches, and steps in it.
BEFORE = 2
TRACED = 5
PROFILE = "profile"


class StepProfile:
    """Traces a few steps of process 0 into `profile` below a folder, for XProf or Perfetto."""

    def __init__(self, folder: Path | None, *, first: int, total: int) -> None:
        # A short training is traced in its last steps.
        self._folder = folder
        begin = min(first + BEFORE, max(total - TRACED, first))
        self._steps = range(begin, min(begin + TRACED, total))
        self._runs = False

    def before(self, step: int) -> None:
        if self._folder is not None and step == self._steps.start and jax.process_index() == 0:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of a function would slow the steps down
            jax.profiler.start_trace(str(self._folder / PROFILE), profiler_options=options)
            self._runs = True

    def after(self, step: int, result: Mapping[str, jax.Array]) -> None:
        # With the results of its last step: dispatch alone would end before the device has done anything.
        if self._runs and step == self._steps.stop - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()


def step_seconds(metrics: Path, steps: Sequence[int]) -> float:
    """Returns the seconds of a training whose stages have these steps, earlier processes too, from `metrics.jsonl`."""
    # The median of a stage's steps stands for all: compilation, which takes the same time for 10 steps and for 10,000,
    # and pauses do not count.
    lines = [line for line in _step_lines(metrics) if "seconds" in line]
    total = 0.0
    before = 0
    for count in steps:
        seconds = [line["seconds"] for line in lines if before < line["step"] <= before + count]
        total += count * statistics.median(seconds) if seconds else 0.0
        before += count
    return total
