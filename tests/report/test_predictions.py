"""What was predicted image by image, counted in plain loops."""

import csv

import numpy as np
import pytest
from sklearn import metrics

from clipbias.data.confusion import class_summary
from clipbias.errors import ClipbiasError
from clipbias.prediction import Accuracy
from clipbias.report.predictions import (
    Answers,
    confusion_figure,
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
    with pytest.raises(ClipbiasError, match=r"b\.npz is damaged"):
        Answers.read(folder / "b.npz")
    write_class_table(tmp_path)
    assert (tmp_path / "classes.csv").read_text().count("\na,") == len(NAMES)


def test_the_weakest_classes_are_named_with_what_they_are_taken_for():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([1, 1, 2, 0, 1, 0, 2])
    words = weakest_classes(Answers(labels, predicted, NAMES))
    assert words == "ant 25.0 %, most often taken for bee; bee 50.0 %, most often taken for ant"
