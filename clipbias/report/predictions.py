"""Predictions image by image: accuracies of classes, and confusions."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging

from clipbias.data.confusion import (
    class_accuracies,
    class_f1,
    class_precisions,
    confusion,
    least_recognised,
    most_confused_with,
)
from clipbias.errors import ClipbiasError
from clipbias.io import load_arrays
from clipbias.report import style
from clipbias.report.pages import CaptionedFigure, write_csv
from clipbias.sentences import counted
from clipbias.terminal import printable

_MOST_NAMED = 60  # classes whose names fit beside the picture


@dataclasses.dataclass(frozen=True)
class Answers:
    labels: np.ndarray  # true class numbers, int `[n]`
    predicted: np.ndarray  # class numbers, int `[n]`; -1 for an unreadable image, which counts nowhere
    class_names: Sequence[str]  # `[C]`

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Reads a file that an evaluation left in `predictions/`. Raises `ClipbiasError` if it is damaged."""
        labels, predicted, class_names = load_arrays(path, "labels", "predicted", "class_names").values()
        return cls(labels, predicted, [str(name) for name in class_names])

    def confusion(self) -> np.ndarray:
        """Counts images by true class (rows) and predicted class (columns): int `[C, C]`."""
        return confusion(self.labels, self.predicted, len(self.class_names))

    def frame(self) -> pd.DataFrame:
        """Makes a row for each class; `taken_for` is its most frequent wrong prediction, `times` the number of it.

        Accuracy (recall), precision and F1 are in percent; NaN without images, or without predictions of the class.
        """
        counts = self.confusion()
        others, times = most_confused_with(counts)
        columns = {
            "class": list(self.class_names),
            "images": counts.sum(1),
            "correct": np.diag(counts),
            "accuracy": class_accuracies(counts),
            "precision": class_precisions(counts),
            "f1": class_f1(counts),
            "taken_for": [self.class_names[other] if count else "" for other, count in zip(others, times, strict=True)],
            "times": times,
        }
        return pd.DataFrame(columns)


def confusion_figure(answers: Answers, what: str) -> CaptionedFigure:
    """Draws the confusion matrix in percent of each true class; `what` begins the caption."""
    counts = answers.confusion()
    names = [printable(name) for name in answers.class_names]
    # By row: a class with many images would otherwise outshine all others.
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(names) <= _MOST_NAMED
    with style.styled():
        # The figure grows with its names, so that the matrix keeps its size.
        longest = max(map(len, names), default=0) if named else 0
        side = max(2.4, 0.17 * len(names)) if named else 6.0
        figure = style.new_figure(side + 1.3 + 0.065 * longest, side + 0.6 + 0.065 * longest)
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        if named:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
            axes.set_yticks(range(len(names)), names, fontsize=6.5)
        # Lines of a grid would hide small cells.
        axes.grid(False)
        axes.set(xlabel="predicted class", ylabel="true class")
        figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02).set_label("images of the true class (%)")
    unread = int((answers.predicted < 0).sum())
    caption = (
        f"{what}: predictions of each class (columns) in percent of the images of each class (rows); "
        f"{counted(int(counts.sum()), 'image')} in {counted(len(names), 'class')}"
        + (f", without {unread:,} that could not be read." if unread else ".")
        + ("" if named else " Classes are in the dataset's order.")
    )
    # Most pairs of classes are never confused: the file has those that are.
    rows = [
        (answers.class_names[true], answers.class_names[answer], int(counts[true, answer]))
        for true, answer in np.argwhere(counts)
    ]
    numbers = pd.DataFrame(rows, columns=["class", "answer", "images"])
    return CaptionedFigure("confusion", "Confusion of classes", caption, figure, numbers)


def write_answers(folder: Path, image_names: Sequence[str], answers: Answers, what: str) -> None:
    """Writes `classes.csv`, `predictions.csv` and `confusion.{png,pdf,csv}`, each atomically.

    `what` names model and images in the caption.
    """
    write_csv(folder / "classes.csv", answers.frame())
    # An unreadable image stays in the file, with an empty prediction.
    names = [*answers.class_names, ""]  # -1 is the last
    rows = [
        (image, names[label], names[answer], int(label == answer))
        for image, label, answer in zip(image_names, answers.labels, answers.predicted, strict=True)
    ]
    write_csv(folder / "predictions.csv", pd.DataFrame(rows, columns=["image", "class", "answer", "correct"]))
    confusion_figure(answers, what).save(folder)


def write_class_table(folder: Path) -> None:
    """Writes `classes.csv` for all evaluations in `predictions/` of a run's folder; warns of damaged files."""
    tables = {}
    for path in sorted((folder / "predictions").glob("*.npz")):
        # A damaged file does not cost the table of all others.
        try:
            tables[path.stem] = Answers.read(path).frame()
        except ClipbiasError as error:
            logging.warning("%s", error)
    if tables:
        write_csv(folder / "classes.csv", pd.concat(tables, names=["run"]).reset_index("run"))


def weakest_classes(answers: Answers, most: int = 3) -> str:
    """Writes the classes of the lowest accuracies, with their most frequent wrong predictions."""
    rows = answers.frame().to_dict("records")
    weakest = (rows[number] for number in least_recognised(answers.confusion(), most))
    return "; ".join(
        f"{row['class']} {row['accuracy']:.1f} %, most often taken for {row['taken_for']}" for row in weakest
    )
