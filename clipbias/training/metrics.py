"""Metrics on disk: one JSON object per line always, TensorBoard where `tensorboardX` is installed."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from clipbias.errors import ClipbiasError
from clipbias.files import read_json_lines, write_text


class MetricWriter:
    """Appends metrics to `metrics.jsonl` in a folder; only process 0 writes.

    A run that continues drops the lines of steps that it will do again, so no step is there twice. Where the number of
    `steps` that the whole run takes is given, every line tells it, so that the file alone says how far a run is.
    """

    def __init__(self, folder: str | os.PathLike, *, start_step: int = 0, steps: int | None = None) -> None:
        self._file = self._board = None
        self._total = {} if steps is None else {"steps": steps}
        if jax.process_index() != 0:
            return
        self._path = path = Path(folder) / "metrics.jsonl"
        try:
            kept = [line for line in read_json_lines(path) if is_step(line) and line["step"] < start_step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))  # killed here, nothing is lost
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise ClipbiasError(f"cannot write {path}: {error.strerror}; choose another --workdir.") from error
        if importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(path.parent / "tensorboard"))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; scalars also go to TensorBoard."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **self._total, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            self.close()
            raise ClipbiasError(
                f"cannot write {self._path}: {error.strerror}; make room and run the same command again."
            ) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was already told
                self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()


def is_step(line: Mapping[str, Any]) -> bool:
    """Whether a line says which step it belongs to."""
    return isinstance(line.get("step"), int)
