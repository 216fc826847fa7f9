"""The cost of runs: seconds of training.

Programs are compiled once however long they run, so that the time of it is left out: a training takes as many times the
median of its steps' seconds as it has steps. What was trained before a run was stopped counts like the rest.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from clipbias.io import read_json_lines
from clipbias.training.metrics import is_step


class Stopwatch:
    """Adds up the seconds of what runs inside."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began


def step_seconds(metrics: Path, steps: Sequence[int]) -> float:
    """Seconds of a training whose stages have so many steps, from the lines of its `metrics.jsonl`."""
    lines = [line for line in read_json_lines(metrics) if is_step(line) and "seconds" in line]
    total = 0.0
    before = 0
    for count in steps:
        seconds = [line["seconds"] for line in lines if before < line["step"] <= before + count]
        total += count * statistics.median(seconds) if seconds else 0.0
        before += count
    return total
