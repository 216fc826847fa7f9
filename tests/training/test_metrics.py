"""Metrics of a run that is stopped and continued."""

from pathlib import Path

from clipbias.files import read_json_lines
from clipbias.training.metrics import MetricWriter


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


def test_a_process_killed_before_its_first_step_loses_nothing(tmp_path: Path) -> None:
    with MetricWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.write(2, {"loss": 1.0})
    opened = MetricWriter(tmp_path, start_step=3)
    assert steps(tmp_path) == [1, 2]  # on disk, whatever happens to the process now
    opened.close()


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    with MetricWriter(tmp_path, start_step=2) as metrics:
        metrics.write(2, {"loss": 1.0})
    assert steps(tmp_path) == [1, 2]
