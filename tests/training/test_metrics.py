"""Metrics of a run that is stopped and continued."""

from pathlib import Path

import numpy as np
import pytest

from clipbias.io import read_json_lines
from clipbias.training.progress import MetricWriter, StepReport


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_json_lines(folder / "metrics.jsonl")]


def test_steps_that_are_done_again_are_there_once(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, steps=9) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0})
    with MetricWriter(tmp_path, start_step=3, steps=9) as metrics:
        metrics.write(3, {"loss": 2.0})
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["steps"], line["loss"]) for line in lines] == [(1, 9, 1.0), (2, 9, 1.0), (3, 9, 2.0)]
    opened = MetricWriter(tmp_path, start_step=4)
    assert steps(tmp_path) == [1, 2, 3]  # on disk, though the process may be killed before its first step
    opened.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short
    with MetricWriter(tmp_path, start_step=4) as metrics:
        metrics.write(4, {"loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_the_progress_shows_what_share_is_waited_for_images() -> None:
    shown = []
    share = [0.0]

    class Progress:
        def advance(self, count, values):
            shown.append(values.get("waiting"))

    values = {"loss": np.ones(1), "accuracy": np.ones(1), "gradient_norm": np.ones(1)}
    for waiting in (lambda: share[0], None):
        report = StepReport("Bias", [1], Progress(), None, images=4, waiting=waiting)
        for step, share[0] in enumerate((0.0, 0.127, 1.0), 1):
            report.step(step, values, np.ones(1))
        report.catch_up()
    # Each step is told a step later, with the share of that moment.
    assert shown == ["13%", "100%", "100%", None, None, None]


def test_images_a_second_are_a_mean_without_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    now = [0.0]

    class Progress:
        def advance(self, count, values):
            shown.append(values.get("images/s"))

    monkeypatch.setattr("clipbias.training.progress.time.monotonic", lambda: now[0])
    values = {"loss": np.ones(1), "accuracy": np.ones(1), "gradient_norm": np.ones(1)}
    report = StepReport("Bias", [1], Progress(), None, images=40)
    for step, now[0] in enumerate((0.0, 60.0, 70.0, 80.0), 1):
        report.step(step, values, np.ones(1))
    report.catch_up()  # the last is there at once
    assert shown == [None, 4.0, 4.0, 6.0]
