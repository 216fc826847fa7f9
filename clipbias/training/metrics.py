"""Metrics of steps: one JSON object per line on disk always, and what else is asked for (`trackers`)."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import data_path, is_remote, read_json_lines, write_text
from clipbias.training import mesh as meshes
from clipbias.training.progress import Progress
from clipbias.training.trackers import AUTO, Trackers

METRICS = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to `metrics.jsonl` in a folder; only process 0 writes. A file in a bucket is written at the end.

    A run that continues drops the lines of steps that it will do again, so no step is there twice. Every line has the
    number of `steps` that the whole run takes, if it is given: the file alone says how far a run is.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        start_step: int = 0,
        steps: int | None = None,
        trackers: Sequence[str] = (AUTO,),
    ) -> None:
        self._file: Any = None
        self._total = {} if steps is None else {"steps": steps}
        if jax.process_index() != 0:
            return
        self._path = path = data_path(folder) / METRICS
        earlier = [line for line in read_json_lines(path) if is_step(line) and line["step"] < start_step]
        if is_remote(path):
            trackers = [name for name in trackers if name not in (AUTO, "tensorboard")]
        text = "".join(json.dumps(line) + "\n" for line in earlier)
        write_text(path, text)  # killed here, nothing is lost
        self._trackers = Trackers(trackers, path.parent)
        if is_remote(path):  # buckets take whole objects alone
            self._file = StringIO(text)
            self._file.seek(0, os.SEEK_END)
        else:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; the numbers also go to the trackers."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **self._total, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise ClipbiasError(
                f"cannot write {self._path}: {error.strerror}; make room, or see to the disk, and run the same command "
                "again."
            ) from error
        self._trackers.write(step, values)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the file and the trackers."""
        if self._file is None:
            return
        if isinstance(self._file, StringIO):
            write_text(self._path, self._file.getvalue())
        with contextlib.suppress(OSError):  # what could not be written was already reported
            self._file.close()
        self._file = None
        self._trackers.close()


def is_step(line: Mapping[str, Any]) -> bool:
    """Whether a line says which step it belongs to."""
    return isinstance(line.get("step"), int)


class StepReport:
    """Tells progress and metrics of each training step, one step late, so that the device never waits for the host."""

    def __init__(
        self,
        method: str,
        seeds: Sequence[int],
        progress: Progress | None,
        metrics: MetricWriter | None,
        *,
        images: int,
        losses: Sequence[float] | None = None,
        waiting: Callable[[], float] | None = None,
        ends_on_failure: bool = True,
    ) -> None:
        """Reports nothing yet.

        Args:
          method, seeds: name the runs where one fails.
          progress, metrics: told about every step.
          images: of one step in all runs.
          losses: of the step that the runs go on from, `None` where that is the first one.
          waiting: the share of the steps' time that was spent waiting for images; `None` where there are none.
          ends_on_failure: whether a loss that is not finite is an error.
        """
        self._method = method
        self._seeds = seeds
        self._images = images
        self._progress = progress
        self._metrics = metrics
        self._waiting = waiting
        self._ends_on_failure = ends_on_failure
        self._late: tuple[int, Any, np.ndarray] | None = None
        self._when = time.monotonic()
        # When the first step was told, which may have been compiled, and how many were since: their mean is shown,
        # since steps that wait on the device are told at uneven times.
        self._since: float | None = None
        self._timed = 0
        self.losses = [float("nan") for _ in seeds] if losses is None else [*losses]

    def step(self, step: int, values: Any, rate: np.ndarray) -> None:
        """Takes a step's metrics, which may still be in the making, and tells those of the step before."""
        self.catch_up()
        self._late = (step, values, rate)

    def catch_up(self) -> None:
        """Tells what is not told yet. Raises `ClipbiasError` where a loss is not finite, unless that ends nothing."""
        if self._late is None:
            return
        step, values, rate = self._late
        self._late = None
        # Padding lies behind the runs.
        runs = slice(len(self._seeds))
        values = {name: np.asarray(value, np.float64)[runs] for name, value in meshes.device_get(values).items()}
        if "accuracy" in values:
            values["accuracy"] = 100 * values["accuracy"]  # in percent, as everywhere
        for seed, loss in zip(self._seeds, values["loss"], strict=True):
            if self._ends_on_failure and not np.isfinite(loss):
                raise ClipbiasError(
                    f"the loss of {self._method} (seed {seed}) is {loss} at step {step}; "
                    "what was saved before is kept; lower --config.learning_rate or check the images."
                )
        self.losses = values["loss"].tolist()
        now = time.monotonic()
        seconds = now - self._when
        self._when = now
        if self._since is None:
            self._since = now
        else:
            self._timed += 1
        if self._progress is not None:
            shown: dict[str, Any] = {"loss": float(values["loss"].mean()), "lr": float(rate.max())}
            if self._timed:
                shown["images/s"] = self._images * self._timed / max(now - self._since, 1e-9)
            if self._waiting is not None:
                shown["waiting"] = f"{self._waiting():.0%}"
            self._progress.advance(1, shown)
        if self._metrics is not None:
            lines = {name: value.tolist() if len(value) > 1 else float(value[0]) for name, value in values.items()}
            rates = rate.tolist() if len(set(rate.tolist())) > 1 else float(rate[0])
            self._metrics.write(step, {**lines, "learning_rate": rates, "seconds": round(seconds, 4)})
