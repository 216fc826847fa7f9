"""How seconds add up; none of these tests looks at a clock's own."""

import json
from pathlib import Path

import pytest

from clipbias.training import progress


def test_a_training_takes_its_steps_times_their_median_whatever_compiling_took(tmp_path: Path) -> None:
    # The first step compiles, and so does the fourth: the run was stopped before it, and continued.
    seconds = [9.0, 1.0, 1.0, 8.0, 2.0, *(0.5,) * 3, 7.0, 0.25]
    lines = [json.dumps({"step": number + 1, "seconds": value}) for number, value in enumerate(seconds)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"cut short']) + "\n")
    path = tmp_path / "metrics.jsonl"
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
