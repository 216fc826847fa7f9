"""Metrics on disk: one JSON object per line always, TensorBoard where `tensorboardX` is installed."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from clipbias.errors import ClipbiasError
from clipbias.files import read_json_lines


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
        path = Path(folder) / "metrics.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_json_lines(path) if line.get("step", 0) < start_step]
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed in close)
            for line in kept:
                self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ClipbiasError(f"cannot write {path}: {error.strerror}; choose another --workdir.") from error
        if importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(path.parent / "tensorboard"))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; scalars also go to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **self._total, **values}) + "\n")
        self._file.flush()
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
            self._file.close()
        if self._board is not None:
            self._board.close()
