"""What was predicted image by image: accuracies of classes and what they are taken for, and a CSV table that grows.

The table is continued after a kill. Beside `answers.csv`, `answers.csv.json` says what its lines depend on: lines of
another model or of other settings are never mixed with them. Lines are written batch by batch; one that a kill cut
short is dropped. A cell that a spreadsheet would take for a formula has an apostrophe before it, and ends of lines in a
cell are escapes. A table that another program has saved otherwise since is refused.
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

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
from clipbias.io import lock_file, read_json, reason, user_path, write_text
from clipbias.report import style
from clipbias.report.frames import read_predictions
from clipbias.report.pages import CaptionedFigure, write_csv
from clipbias.sentences import counted
from clipbias.terminal import printable

_MOST_NAMED = 60  # classes whose names fit beside the picture


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one model answered."""

    labels: np.ndarray  # true class numbers, int `[n]`
    predicted: np.ndarray  # class numbers, int `[n]`; -1 for an image that could not be read, which counts nowhere
    class_names: Sequence[str]  # `[C]`

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Those of a file that an evaluation left in `predictions/`. Raises `ClipbiasError` where it is damaged."""
        labels, predicted, class_names = read_predictions(path, "class_names")
        return cls(labels, predicted, [str(name) for name in class_names])

    def confusion(self) -> np.ndarray:
        """How many images of each class were taken for each: int [C, C], a row for each true class."""
        return confusion(self.labels, self.predicted, len(self.class_names))

    def frame(self) -> pd.DataFrame:
        """A row for each class; `taken_for` is the class that it is most often taken for, so many `times`.

        Accuracy (the class's recall), precision and F1 are in percent. Accuracy and F1 of a class without images, and
        the precision of a class that no image is taken for, are not numbers.
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
    """The confusion matrix: how each class's images are shared out among the answers; `what` is for the caption."""
    counts = answers.confusion()
    names = [printable(name) for name in answers.class_names]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(names) <= _MOST_NAMED
    with style.styled():
        longest = max(map(len, names), default=0) if named else 0
        side = max(2.4, 0.17 * len(names)) if named else 6.0
        figure = style.new_figure(side + 1.3 + 0.065 * longest, side + 0.6 + 0.065 * longest)
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        if named:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
            axes.set_yticks(range(len(names)), names, fontsize=6.5)
        axes.grid(False)
        axes.set(xlabel="answer", ylabel="true class")
        bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label("images of the true class (%)")
    unread = int((answers.predicted < 0).sum())
    caption = (
        f"{what}: of the images of each class (rows) how many percent were answered with each class (columns); "
        f"{counted(int(counts.sum()), 'image')} in {counted(len(names), 'class')}"
        + (f", without {unread:,} that could not be read." if unread else ".")
        + ("" if named else " Classes are in the dataset's order.")
    )
    rows = [
        (answers.class_names[true], answers.class_names[answer], int(counts[true, answer]))
        for true, answer in np.argwhere(counts)
    ]
    numbers = pd.DataFrame(rows, columns=["class", "answer", "images"])
    return CaptionedFigure("confusion", "Which classes are taken for which", caption, figure, numbers)


def write_answers(folder: Path, images: Sequence[str], answers: Answers, what: str) -> None:
    """Writes `classes.csv`, `predictions.csv` and `confusion.{png,pdf,csv}`, each atomically.

    `images` are names, and `what` names model and images in a caption.
    """
    write_csv(folder / "classes.csv", answers.frame())
    names = [*answers.class_names, ""]  # -1 is the last
    rows = [
        (image, names[label], names[answer], int(label == answer))
        for image, label, answer in zip(images, answers.labels, answers.predicted, strict=True)
    ]
    columns = ["image", "class", "answer", "correct"]
    write_csv(folder / "predictions.csv", pd.DataFrame(rows, columns=columns))
    confusion_figure(answers, what).save(folder)


def write_class_table(folder: Path) -> None:
    """Writes `classes.csv` of all evaluations in `predictions/` of a run's folder, a row for each class of each.

    Damaged files are left out and told.
    """
    tables = {}
    for path in sorted((folder / "predictions").glob("*.npz")):
        try:
            tables[path.stem] = Answers.read(path).frame()
        except ClipbiasError as error:
            logging.warning("%s", error)
    if tables:
        write_csv(folder / "classes.csv", pd.concat(tables, names=["run"]).reset_index("run"))


def weakest_classes(answers: Answers, most: int = 3) -> str:
    """The classes of the lowest accuracies in words, with what they are taken for."""
    rows = answers.frame().to_dict("records")
    weakest = (rows[number] for number in least_recognised(answers.confusion(), most))
    return "; ".join(
        f"{row['class']} {row['accuracy']:.1f} %, most often taken for {row['taken_for']}" for row in weakest
    )


# Between the names of a prediction set.
BETWEEN = " | "
# A formula of a spreadsheet, and one behind apostrophes, so that every cell can be read back.
_FORMULA = re.compile(r"'*[=+\-@\t]")


class PredictionTable:
    """An open table; `images` are the pictures that have a line, as `key` names them."""

    def __init__(self, path: Path, columns: Sequence[str], file: BinaryIO) -> None:
        """Takes the lines that are there; of an empty file writes the first one.

        Raises `ClipbiasError` where a line has other columns than were written.
        """
        self.path = path
        self._columns = columns
        self._file = file
        header = _line(columns)
        content = file.read()
        end = content.rfind(b"\n") + 1
        # Programs differ in separators, quotes, marks of encoding and ends of lines: the first line's bytes tell.
        rows = _rows(content[:end]) if content[:end].startswith(header) else []
        widths = [len(row) for row in rows] or [len(columns) if header.startswith(content) else 0]
        if wrong := [number for number, width in enumerate(widths, start=1) if width != len(columns)]:
            raise ClipbiasError(
                f"{path} has a line {wrong[0]} that predict did not write, as when a spreadsheet has saved it; choose "
                "another --config.output, or remove it."
            )
        self.images = {row[0] for row in rows[1:]}
        file.seek(end)
        file.truncate()
        if not end:
            self.append([dict(zip(columns, columns, strict=True))])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds finished lines, the values by column; they are on the disk when this returns."""
        lines = [_line([row.get(column, "") for column in self._columns]) for row in rows]
        with _writing(self.path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())


def key(image: object) -> str:
    """The name of a picture in a table; ends of lines, and half surrogate pairs, which UTF-8 lacks, become escapes."""
    text = str(image).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def open_table(name: str, columns: Sequence[str], facts: Mapping[str, Any]) -> Iterator[PredictionTable]:
    """Opens a table, a new one or one to be continued; its first column names the picture.

    Lines depend on `facts`, JSON values by what they are called in a message. Raises `ClipbiasError` where the file
    cannot be written, another process writes it, or it has lines that depend on other facts.
    """
    path = user_path(name)
    if path.suffix.lower() != ".csv":
        raise ClipbiasError(f"--config.output is {name}; give a file that ends with .csv.")
    about = path.with_name(f"{path.name}.json")
    facts = json.loads(json.dumps({**facts, "columns": list(columns)}))
    with contextlib.ExitStack() as opened:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "ab+"))
        try:
            lock_file(file.fileno(), fcntl.LOCK_EX)
        except BlockingIOError as error:
            raise ClipbiasError(f"another process writes {path}; wait, or choose another --config.output.") from error
        file.seek(0)
        if path.stat().st_size:
            if not about.exists():
                raise ClipbiasError(
                    f"{path} is no table to continue: {about.name} is not beside it; choose another file."
                )
            before = read_json(about, dict, what="what a table depends on")
            if other := [name for name, value in facts.items() if before.get(name) != value]:
                raise ClipbiasError(
                    f"{path} has lines of other settings ({', '.join(other)}); choose another --config.output, or "
                    "remove it."
                )
        else:
            write_text(about, json.dumps(facts, indent=1) + "\n")
        yield PredictionTable(path, columns, file)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another --config.output.") from error


def _line(cells: Sequence[object]) -> bytes:
    """A line of a CSV file."""
    text = io.StringIO(newline="")
    named = map(key, cells)
    csv.writer(text, lineterminator="\n").writerow(f"'{cell}" if _FORMULA.match(cell) else cell for cell in named)
    return text.getvalue().encode("utf-8")


def _rows(lines: bytes) -> list[list[str]]:
    """The cells of whole lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(lines)))  # a prediction set of thousands of classes is long
    rows = csv.reader(io.StringIO(lines.decode(errors="replace"), newline=""))
    return [[cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in row] for row in rows]
