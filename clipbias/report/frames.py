"""Sweeps as data frames: all numbers of their tables and figures, from rows of `results.jsonl`.

± is one standard error in every table. Two things are random: the test images, and everything drawn by a seed (training
images, their order, the learnables' start). Each gives a variance of a mean over seeds, and the standard error is the
root of their sum:

    ±² = p (1 − p) / images + s² / seeds

Below 100 images the first part is the square of the width of Wilson's 95 % interval, divided by 3.92.
All seeds are tested on the same images, so more seeds reduce the second part alone. Variation from image to image *and*
from seed to seed is in both parts, so errors are too large rather than too small.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipbias.intervals import SMALL, binomial_error
from clipbias.io import load_arrays
from clipbias.report.names import ordered_datasets, ordered_methods
from clipbias.sentences import counted

# A difference of so many standard errors is detected in 80 % of repeated studies.
DETECTABLE = 1.959964 + 0.841621
EXPLAINED = (
    f"± is one standard error: of the test images, √(p (1 − p) / images), or below {SMALL} images the width of "
    "Wilson's 95 % interval, divided by 3.92; and of the seeds, s / √n; both added in squares."
)


def harmonic_error(base: float, new: float, errors: tuple[float, float]) -> float:
    """Computes the error of the harmonic mean `2 b n / (b + n)` of independent `b` and `n`, to first order."""
    if base + new <= 0:
        return 0.0
    slopes = 2 * (new / (base + new)) ** 2, 2 * (base / (base + new)) ** 2
    return math.hypot(*(slope * error for slope, error in zip(slopes, errors, strict=True)))


def difference_error(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Computes the standard error of the difference of two cells of `Sweep` on one dataset; NaN where unknown."""
    # Images are compared in pairs where the answers of both are known. Else they count as if each method had images of
    # its own, which gives too large an error.
    seeds = math.hypot(first["seeds_error"], second["seeds_error"])
    if first["correct"] is None or second["correct"] is None:
        return math.hypot(seeds, first["images_error"], second["images_error"])
    each = first["correct"] - second["correct"]
    return math.hypot(seeds, 100 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0)


def answers(
    folder: Path | None,
    known: dict[str, np.ndarray],
    dataset: str,
    files: Sequence[object],
    accuracies: Sequence[float],
) -> np.ndarray | None:
    """Returns the share of runs that were right on each test image, float `[n]`; `files` have names without `.npz`."""
    # `None` if a file is missing or damaged, has other images than those `known` of the dataset, or does not agree with
    # its row's accuracy: a paired comparison of other images would be wrong without a sign of it.
    shares = []
    for name, accuracy in zip(files, accuracies, strict=True):
        if folder is None or not isinstance(name, str) or not name or Path(name).name != name:
            return None
        try:
            labels, predicted, images = load_arrays(folder / f"{name}.npz", "labels", "predicted", "images").values()
            right, images = (labels == predicted)[predicted >= 0], images[predicted >= 0]
        except Exception:  # arrays may also not fit together
            return None
        of_dataset = known.setdefault(dataset, images)
        if not len(right) or not np.array_equal(of_dataset, images) or abs(100 * right.mean() - accuracy) > 1e-6:
            return None
        shares.append(right)
    return np.mean(shares, axis=0) if shares else None


Row = Mapping[str, Any]
# Measure, method, dataset and shots of a cell; `None` shots are all images.
CellKey = tuple[str, str, str, int | None]
ACCURACY = "accuracy"
AVERAGE = "Average"
_KEY = ["method", "dataset", "shots", "seed"]
_CELL = ["measure", "method", "dataset", "shots"]
# Stands for `None`, all images, in this module's columns of whole numbers.
_ALL = 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    rows: Sequence[Row]  # of `results.jsonl`; a method with several learning rates has as many names
    # By measure, method, dataset (or `AVERAGE`) and number of shots: `mean` over `seeds` runs in percent of `images`;
    # `drawn`, False for a method that draws no training images; `images_error` and `seeds_error`, whose hypotenuse is
    # the standard `error`; and `correct`, the share of seeds that were right on each image, or `None`.
    cells: Mapping[CellKey, Row]
    measures: tuple[str, ...]  # "accuracy", or those of a protocol: base, new and H, or datasets
    methods: tuple[str, ...]  # in the order of tables, like datasets
    datasets: tuple[str, ...]
    shots: tuple[int | None, ...]  # ascending; `None` alone if no run was few-shot
    failures: Sequence[Row]  # rows of failed runs

    @property
    def measure(self) -> str:
        """Main measure: accuracy, else H, else the first."""
        return next((name for name in (ACCURACY, "H") if name in self.measures), self.measures[0])

    @property
    def columns(self) -> tuple[str, ...]:
        """Datasets, and their average if there are several."""
        return self.datasets if len(self.datasets) < 2 else (*self.datasets, AVERAGE)

    @functools.cached_property
    def by_method(self) -> dict[str, list[Row]]:
        return {name: [row for row in self.rows if row["method"] == name] for name in self.methods}

    def means_of(self, numbers_of: Callable[[Row], Mapping[str, float | None]]) -> dict[CellKey, Row]:
        """Averages other numbers of the rows to cells."""
        return cells_of(run_frame(self.rows, numbers_of), self.shots, self.datasets)

    def table(self, measure: str, shots: int | None, field: str = "mean") -> pd.DataFrame:
        """Returns a field of the cells, methods x datasets; NaN where unknown."""
        each = {
            column: [self.cells.get((measure, name, column, shots), {}).get(field, math.nan) for name in self.methods]
            for column in self.columns
        }
        return pd.DataFrame(each, index=list(self.methods))

    def seeds(self, measure: str, shots: int | None) -> int:
        """Returns the largest number of seeds of a cell."""
        return int(np.nanmax(self.table(measure, shots, "seeds").to_numpy(float), initial=1))


def read_sweep(records: Iterable[Row], predictions: Path | None = None) -> Sweep:
    """Makes a sweep from the rows of a results file, one per run.

    `predictions`: folder of the answers to each test image, by which methods are compared in pairs.
    """
    # Folder names may hold halves of surrogate pairs, which data frames refuse: they become escapes.
    named = [
        {**row, **{name: row[name].encode("utf-8", "backslashreplace").decode() for name in ("method", "dataset")}}
        for row in records
    ]
    # A mean over learning rates would be no method: each rate of a method on the same draw has a name of its own.
    rates: dict[tuple[str, str, int, int | None], set[float | None]] = {}
    for row in named:
        rates.setdefault(_key(row), set()).add(row.get("learning_rate"))
    several = {key[0] for key, of_draw in rates.items() if len(of_draw - {None}) > 1}
    for row in named:
        if row["method"] in several and row.get("learning_rate") is not None:
            row["method"] += f", rate {row['learning_rate']:g}"
    runs = run_frame(named, _accuracies)
    shots = tuple(sorted({row["shots"] for row in named if row.get("shots")})) or (None,)
    measures = tuple(dict.fromkeys(runs["measure"])) or (ACCURACY,)
    datasets = ordered_datasets(row["dataset"] for row in named)
    # A run that failed once and succeeded later is no failure.
    finished = {tuple(line) for line in runs[_KEY].itertuples(index=False)}
    return Sweep(
        rows=named,
        cells=cells_of(runs, shots, datasets, predictions),
        measures=measures,
        methods=ordered_methods(row["method"] for row in named),
        datasets=datasets,
        shots=shots,
        failures=[row for row in named if not _is_ok(row) and _key(row) not in finished],
    )


def shots_words(shots: int | None) -> str:
    """Writes `16 shots`, or `all images` for `None`."""
    return "all images" if shots is None else counted(shots, "shot")


def run_frame(rows: Sequence[Row], numbers_of: Callable[[Row], Mapping[str, float | None]]) -> pd.DataFrame:
    """Makes a line for each finished run and each of its numbers, `numbers_of` its row by name."""
    lines = []
    for row in filter(_is_ok, rows):
        for measure, value in numbers_of(row).items():
            plain = measure == ACCURACY
            images = row.get("images") if plain else (row.get("tested_images") or {}).get(measure)
            file = (row.get("predictions") or {}).get("test" if plain else measure)
            number = float("nan") if value is None else float(value)
            lines.append((*_key(row), measure, number, images or math.nan, file, _is_drawn(row)))
    columns = [*_KEY, "measure", "value", "images", "predictions", "drawn"]
    # A repeated run counts once, by its last row.
    return pd.DataFrame(lines, columns=columns).astype({"drawn": bool}).drop_duplicates([*_KEY, "measure"], keep="last")


def cells_of(
    runs: pd.DataFrame, shots: Sequence[int | None], datasets: Sequence[str], predictions: Path | None = None
) -> dict[CellKey, Row]:
    """Averages over seeds and datasets, with standard errors, to `Sweep.cells`."""
    known: dict[str, np.ndarray] = {}  # test images by dataset
    # Methods that draw no training images have the same number for every number of shots.
    counts = pd.DataFrame({"shots": [count or _ALL for count in shots]})
    same = runs[~runs["drawn"]].drop(columns="shots").merge(counts, how="cross")
    groups = (pd.concat([runs[runs["drawn"]], same]) if len(same) else runs).groupby(_CELL, sort=False)
    cells = groups.agg(
        mean=("value", "mean"), seeds=("value", "size"), drawn=("drawn", "all"), deviation=("value", "std")
    )
    # The smallest test set of a cell's runs, and none if a run does not know its own.
    cells["images"] = groups["images"].min().where(groups["images"].count() == cells["seeds"])
    cells["images_error"] = [
        binomial_error(mean, images) if images >= 1 and not math.isnan(mean) else math.nan
        for mean, images in zip(cells["mean"], cells["images"], strict=True)
    ]
    cells["seeds_error"] = (cells.pop("deviation") / np.sqrt(cells["seeds"])).fillna(0.0)
    means = cells["mean"].to_dict()
    errors = cells["images_error"].to_dict()
    for measure, *where in list(errors):
        if measure == "H":  # a run with H has base and new accuracies
            base, new = ("base", *where), ("new", *where)
            errors["H", *where] = harmonic_error(means[base], means[new], (errors[base], errors[new]))
    cells["images_error"] = list(errors.values())
    cells["error"] = np.hypot(cells["images_error"], cells["seeds_error"])
    cells["correct"] = [
        answers(predictions, known, dataset if measure == ACCURACY else f"{dataset}/{measure}", files, values)
        for (measure, _, dataset, _), files, values in zip(
            cells.index, groups["predictions"].agg(list), groups["value"].agg(list), strict=True
        )
    ]
    if len(datasets) > 1:
        cells = pd.concat([cells, _averages(cells, len(datasets))])
    lines = cells.to_dict("index").items()
    return {(*where, None if count == _ALL else int(count)): line for (*where, count), line in lines}


def _averages(cells: pd.DataFrame, count: int) -> pd.DataFrame:
    """Averages cells over datasets, where all have a result."""
    # Datasets have images and draws of their own, so errors are independent and their squares add. Unknown errors count
    # as infinite: a sum would take NaN for 0.
    errors = ["images_error", "seeds_error", "error"]
    squares = cells.drop(columns="images")
    squares[errors] = cells[errors].pow(2).fillna(math.inf)
    groups = squares.drop(columns="correct").groupby(["measure", "method", "shots"], sort=False)
    means = groups.agg({"mean": "mean", "seeds": "min", "drawn": "all"} | dict.fromkeys(errors, "sum"))
    means[errors] = means[errors].replace(math.inf, math.nan).pow(0.5) / count
    means = means[groups.size() == count].assign(correct=None, dataset=AVERAGE)
    return means.set_index("dataset", append=True).reorder_levels(_CELL)


def _accuracies(row: Row) -> dict[str, float | None]:
    # H is taken within a run and then averaged: the harmonic mean of two averages over seeds is another number.
    accuracies = dict(row.get("accuracies") or {ACCURACY: row.get("accuracy")})
    if {"base", "new"} <= accuracies.keys():
        base, new = accuracies["base"], accuracies["new"]
        accuracies["H"] = 2 * base * new / (base + new) if base + new > 0 else 0.0
    return accuracies


def _is_ok(row: Row) -> bool:
    return row.get("status", "ok") == "ok"


def _is_drawn(row: Row) -> bool:
    return bool(row.get("shots")) or row.get("protocol") == "full"


def _key(row: Row) -> tuple[str, str, int, int | None]:
    return row["method"], row["dataset"], row.get("shots") or _ALL, row.get("seed") if _is_drawn(row) else 0
