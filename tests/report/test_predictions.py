"""What was predicted image by image: counted in plain loops, and a table that is continued after any cut."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn import metrics

from clipbias.data.confusion import class_summary
from clipbias.errors import ClipbiasError
from clipbias.prediction import Accuracy
from clipbias.report.predictions import (
    Answers,
    confusion_figure,
    key,
    open_table,
    weakest_classes,
    write_answers,
    write_class_table,
)

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)  # no dog among them
    predicted = np.where(rng.random(40) < 0.5, labels, rng.integers(0, 4, 40))
    predicted[[3, 17]] = -1
    return Answers(labels, predicted, NAMES)


def pairs(answers):
    return [
        (NAMES[true], NAMES[label]) for true, label in zip(answers.labels, answers.predicted, strict=True) if label >= 0
    ]


def test_rows_are_counted_image_by_image(answers):
    answer_pairs = pairs(answers)
    for row in answers.frame().itertuples(index=False):
        name, images, correct, share, _, _, other, times = row
        labels = [guess for true, guess in answer_pairs if true == name]
        assert (images, correct) == (len(labels), labels.count(name))
        wrong = {guess: labels.count(guess) for guess in labels if guess != name}
        assert times == max(wrong.values(), default=0) and (not times or wrong[other] == times)
        assert np.isnan(share) if not labels else share == pytest.approx(100 * labels.count(name) / len(labels))


def test_means_over_classes_are_scikit_learns(answers):
    """A class without images is left out, though others are taken for it."""
    read = answers.predicted >= 0
    labels, predicted = answers.labels[read], answers.predicted[read]
    assert 3 in predicted and 3 not in labels
    summary = class_summary(answers.labels, answers.predicted, NAMES)
    present = {"labels": np.unique(labels), "zero_division": 0}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, predicted, **present)
    assert summary["macro_f1"] == pytest.approx(
        100 * metrics.f1_score(labels, predicted, average="macro", **present), abs=1e-12
    )
    assert summary["balanced_accuracy"] == pytest.approx(100 * recall.mean(), abs=1e-12)
    assert summary["worst_accuracy"] == pytest.approx(100 * recall.min()) and summary["untested_classes"] == ["dog"]
    assert summary["worst_class"] == NAMES[recall.argmin()]
    assert Accuracy(tuple(NAMES), answers.labels, answers.predicted, {}).class_summary == summary
    assert "untested_classes" not in class_summary(np.arange(2), np.zeros(2, int), NAMES[:2])
    frame = answers.frame()
    for name, expected in (("accuracy", recall), ("precision", precision), ("f1", f1)):
        np.testing.assert_allclose(frame[name][:3], 100 * expected, atol=1e-12)
    assert frame.loc[3, ["accuracy", "f1"]].isna().all() and frame.precision[3] == 0


def test_the_picture_shows_shares_of_the_true_class_and_holds_every_pair(answers):
    figure = confusion_figure(answers, "IVLP on pets")
    shown = np.asarray(figure.figure.axes[0].images[0].get_array())
    answer_pairs = pairs(answers)
    for i, true in enumerate(NAMES):
        guesses = [guess for name, guess in answer_pairs if name == true]
        np.testing.assert_allclose(shown[i], [100 * guesses.count(guess) / max(len(guesses), 1) for guess in NAMES])
    assert {(true, guess): count for true, guess, count in figure.numbers.itertuples(index=False)} == {
        pair: answer_pairs.count(pair) for pair in set(answer_pairs)
    }
    assert "38 images in 4 classes, without 2" in figure.caption
    assert [label.get_text() for label in figure.figure.axes[0].get_yticklabels()] == NAMES


def test_names_of_many_classes_are_not_drawn():
    answers = Answers(np.array([0]), np.array([70]), [f"class {number}" for number in range(90)])
    axes = confusion_figure(answers, "x").figure.axes[0]
    assert not any("class" in label.get_text() for label in axes.get_yticklabels())


def test_files_hold_every_answer(answers, tmp_path):
    images = [f"{number}.png" for number in range(40)]
    write_answers(tmp_path, images, answers, "IVLP on pets")
    with open(tmp_path / "predictions.csv", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    answers_in_file = [(row["class"], row["answer"]) for row in rows if row["answer"]]
    assert answers_in_file == pairs(answers) and [row["image"] for row in rows] == images
    assert [row["correct"] == "1" for row in rows] == [*(answers.labels == answers.predicted)]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("classes.csv", "predictions.csv", "confusion.csv", "confusion.pdf", "confusion.png")
    }


def test_a_grid_has_a_row_for_each_class_of_each_evaluation(answers, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("a", "b"):
        np.savez(folder / f"{name}.npz", **{**vars(answers), "class_names": np.array(NAMES)})
    write_class_table(tmp_path)
    with open(tmp_path / "classes.csv", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["run"], row["class"]) for row in rows] == [(run, name) for run in "ab" for name in NAMES]
    assert [int(row["correct"]) for row in rows] == 2 * [*answers.frame().correct]
    (folder / "b.npz").write_bytes(b"damaged")
    with pytest.raises(ClipbiasError, match=r"b\.npz holds no predictions"):
        Answers.read(folder / "b.npz")
    write_class_table(tmp_path)
    assert (tmp_path / "classes.csv").read_text().count("\na,") == len(NAMES)


def test_the_weakest_classes_are_named_with_what_they_are_taken_for():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([1, 1, 2, 0, 1, 0, 2])
    words = weakest_classes(Answers(labels, predicted, NAMES))
    assert words == "ant 25.0 %, most often taken for bee; bee 50.0 %, most often taken for ant"


COLUMNS = ("image", "class")
FACTS = {"adapter": "a", "sets": {"coverage": 0.9}}
ROWS = [
    {"image": "a.png", "class": "cat"},
    {"image": key('two\nlines, "quoted".png'), "class": "dog"},
    {"image": key("half \ud800.png"), "class": "café | maine coon"},
]


def write(path: Path) -> set[str]:
    """Adds the rows that have no line, each by itself; returns those that had one."""
    with open_table(str(path), COLUMNS, FACTS) as table:
        before = set(table.images)
        for row in ROWS:
            if key(row["image"]) not in before:
                table.append([row])
    return before


def test_a_table_that_was_cut_anywhere_ends_as_one_that_was_not(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "whole.csv"
    assert write(path) == set()
    whole = path.read_bytes()
    assert list(csv.DictReader(whole.decode().splitlines(keepends=True))) == ROWS
    assert write(path) == {row["image"] for row in ROWS} and path.read_bytes() == whole
    known = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        known.add(len(write(path)))
        assert path.read_bytes() == whole, length
    assert known == {0, 1, 2}


def test_nobody_else_writes_meanwhile(tmp_path: Path) -> None:
    path = str(tmp_path / "a.csv")
    with (
        open_table(path, COLUMNS, FACTS),
        pytest.raises(ValueError, match=r"another process writes .*a\.csv; wait"),
        open_table(path, COLUMNS, FACTS),
    ):
        pass


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ODD_NAMES = st.text(st.sampled_from("=+-@'\t\r\n\",; ab") | st.characters(exclude_categories=()), max_size=6)


@given(st.lists(ODD_NAMES, min_size=1, max_size=4, unique_by=key), st.integers(0))
@example(["image", "a\rb", "=1+1", "'=1", "''-a", "-a", "@a", "+a", "\ta", "", " ", "'a"], 0)
def test_every_picture_keeps_its_only_line(names: list[str], cut: int) -> None:
    """Whatever its name, and wherever the table was cut. No spreadsheet takes a cell for a formula."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        for length in (None, None, cut):
            if length is not None:
                path.write_bytes(path.read_bytes()[: length % (path.stat().st_size + 1)])
            with open_table(str(path), COLUMNS, FACTS) as table:
                table.append([{"image": name, "class": name} for name in map(key, names) if name not in table.images])
            rows = lines_of(path)
            assert [row["image"].replace("'", "") for row in rows] == [key(name).replace("'", "") for name in names]
            assert all(row["class"] == row["image"] and None not in row for row in rows)
            assert not any(row["image"].startswith(("=", "+", "-", "@", "\t")) for row in rows)
            assert len({row["image"] for row in rows}) == len(names)


def test_a_cell_may_hold_all_classes_of_a_large_set(tmp_path: Path) -> None:
    for seen in (set(), {"a.png"}):
        with open_table(str(tmp_path / "a.csv"), COLUMNS, FACTS) as table:
            assert table.images == seen
            table.append([{"image": "a.png", "class": "maine coon | " * 20_000}] if not seen else [])


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (1, lambda text: b"\xef\xbb\xbf" + text),
        (1, lambda text: text.replace(b"image", b"picture")),
        (1, lambda text: text.replace(b",", b";")),
        (1, lambda text: text.replace(b"\n", b"\r\n")),
        (1, lambda text: b"\n" + text),
        (1, lambda text: text.replace(b"\n", b"\r")),
        (2, lambda text: text.replace(b"a.png", b"\n\na.png")),
        (2, lambda text: text.replace(b"a.png,cat", b"a.png;cat")),
        (2, lambda text: text.replace(b"cat", b"cat,0")),
        (5, lambda text: text + b"\n"),
    ],
)
def test_a_table_that_another_program_saved_is_refused(
    line: int, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    write(path)
    before = change(path.read_bytes())
    path.write_bytes(before)
    with pytest.raises(
        ClipbiasError, match=rf"a\.csv has a line {line} that predict .*; choose another --config\.output"
    ):
        write(path)
    assert path.read_bytes() == before
