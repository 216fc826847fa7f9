"""What methods cost: grouped by kind, with numbers that are means of the rows', and drawn as they are."""

import csv
from pathlib import Path

import pytest

from clipbias.report import cost_figures, cost_tables, read_sweep, render_tables
from clipbias.report.costs import KINDS, duration_words
from clipbias.tuning import METHODS, Kind

COSTS = {"training_seconds": 4.0}


def run(method: str, dataset: str = "a", accuracy: float = 70.0, **others: object) -> dict[str, object]:
    shots = 0 if method == "zero_shot" else 16
    row = {"method": method, "dataset": dataset, "shots": shots, "seed": 1, "accuracy": accuracy, "parameters": 1000}
    return row | COSTS | others


def rows() -> list[dict[str, object]]:
    return [
        run("bias", "a", 80.0, training_seconds=2.0),
        run("bias", "b", 90.0, training_seconds=4.0, parameters=3000),
        *(run("zero_shot", name, 50.0, training_seconds=0.0, parameters=0) for name in "ab"),
        *(run("taskres", name, 60.0) for name in "ab"),
        *(run("coop", name, 70.0) for name in "ab"),
        *(run("own.py", name, 55.0) for name in "ab"),
    ]


def test_every_built_in_method_has_a_kind_that_is_shown() -> None:
    assert {kind.kind for kind, _ in METHODS.values()} <= set(KINDS) - {None}
    assert set(Kind) == set(KINDS) - {None}
    for name, (kind, _) in METHODS.items():  # what trains no number by steps, and learns none
        assert kind.kind != Kind.TRAINING_FREE or not kind.trains, name


def test_methods_are_grouped_by_kind_with_the_means_of_their_costs() -> None:
    (table,) = cost_tables(read_sweep(rows()))
    assert table.columns == ("Method", "Kind", "Accuracy", "Parameters", "Training")
    assert [tuple(row) for row in table.rows] == [
        ("Zero-shot", "Training-free", "50.0", "0", "0 s"),
        ("TaskRes", "Heads", "60.0", "1,000", "4.0 s"),
        ("CoOp", "Prompts", "70.0", "1,000", "4.0 s"),
        ("Bias tuning", "Weights", "85.0", "2,000", "3.0 s"),
        ("own.py", "Others", "55.0", "1,000", "4.0 s"),
    ]
    with_images = [{**row, "images": 100} for row in rows()]
    (table,) = cost_tables(read_sweep(with_images))
    assert table.rows[3][2] == f"85.0 ± {(80 * 20 / 100 + 90 * 10 / 100) ** 0.5 / 2:.1f}"


def test_what_was_not_measured_is_left_out_and_tables_of_accuracies_have_no_times() -> None:
    without = [{name: value for name, value in row.items() if name not in COSTS} for row in rows()]
    assert cost_tables(read_sweep(without)) == () and cost_figures(read_sweep(without)) == ()
    (table,) = cost_tables(read_sweep([*rows()[2:], *without[:2]]))
    assert "Bias tuning" not in {row[0] for row in table.rows} and len(table.rows) == 4
    assert render_tables(read_sweep(rows()), "html") == render_tables(read_sweep(without), "html")


@pytest.mark.ci
def test_the_pictures_draw_what_their_tables_say(tmp_path: Path) -> None:
    by_parameters, by_time = cost_figures(read_sweep(rows()))
    assert (by_parameters.name, by_time.name) == ("accuracy_by_parameters", "accuracy_by_time")
    for figure, bias in ((by_parameters, 2000), (by_time, 3.0)):
        by_method = figure.numbers.set_index("method")
        assert by_method.loc["bias"].iloc[2:4].tolist() == [bias, 85.0] and by_method.loc["zero_shot"].iloc[2] == 0
        free, paid = figure.figure.axes  # what costs nothing has no place on a logarithmic axis
        drawn = {line.get_label(): line.get_xydata().tolist() for line in (*free.lines, *paid.lines)}
        assert drawn["Training-free"] == [[pytest.approx(0), 50.0]]
        assert drawn["Weights"] == [[pytest.approx(bias), 85.0]]
        names = [text.get_text() for axes in (free, paid) for text in axes.texts]
        assert sorted(names) == ["Bias tuning", "CoOp", "TaskRes", "Zero-shot", "own.py"]
        *_, table = figure.save(tmp_path)
        assert len(list(csv.DictReader(table.read_text("utf-8").splitlines()))) == 5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (4e-6, "4.0 µs"),
        (0.0031, "3.1 ms"),
        (0.25, "250 ms"),
        (12.3, "12 s"),
        (270, "4.5 min"),
        (7200, "2.0 h"),
    ],
)
def test_durations_have_two_digits_and_a_unit(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words
