"""The rows of `results.jsonl` as data frames: the one place where numbers of a sweep's tables and figures are made."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipbias.data.confusion import binomial_error
from clipbias.report.errors import Answers, harmonic_error
from clipbias.report.names import at_rate, ordered_datasets, ordered_methods

Row = Mapping[str, Any]
# Measure, method, dataset and shots of a cell; shots are `None` for all images.
CellKey = tuple[str, str, str, int | None]
ACCURACY = "accuracy"
AVERAGE = "Average"
_KEY = ["method", "dataset", "shots", "seed"]
_CELL = ["measure", "method", "dataset", "shots"]
# Stands for `None`, all images, in this module's columns of whole numbers.
_ALL = 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
      rows: of `results.jsonl`; a method that was trained at several learning rates has as many names.
      cells: a line for each measure, method, dataset (or `AVERAGE`) and number of shots, its index. `mean` over `seeds`
        runs in percent of `images`; `drawn`, False for a method that draws no images; `images_error` and
        `seeds_error`, whose hypotenuse is the standard `error` (`report.errors`); and `correct`, the share of seeds
        that were right on each image, or `None`.
      measures: "accuracy", or what a protocol measures: base, new and H, or datasets.
      methods, datasets: in the order in which they are shown.
      shots: ascending; `None` alone if no run was trained on few images.
      failures: the rows of runs that failed.
    """

    rows: Sequence[Row]
    cells: pd.DataFrame
    measures: tuple[str, ...]
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int | None, ...]
    failures: Sequence[Row]

    @property
    def measure(self) -> str:
        """The measure that one number of a method is of: accuracy, else H, else the first."""
        return next((name for name in (ACCURACY, "H") if name in self.measures), self.measures[0])

    @property
    def columns(self) -> tuple[str, ...]:
        """The datasets and, of several, their average."""
        return self.datasets if len(self.datasets) < 2 else (*self.datasets, AVERAGE)

    @functools.cached_property
    def by_method(self) -> dict[str, list[Row]]:
        """The rows of each method."""
        return {name: [row for row in self.rows if row["method"] == name] for name in self.methods}

    @functools.cached_property
    def lines(self) -> dict[CellKey, Row]:
        """The cells by measure, method, dataset and shots."""
        return cell_lines(self.cells)

    def table(self, measure: str, shots: int | None, what: str = "mean") -> pd.DataFrame:
        """A field of the cells, methods x datasets; NaN where nothing is known."""
        each = {
            column: [self.lines.get((measure, name, column, shots), {}).get(what, math.nan) for name in self.methods]
            for column in self.columns
        }
        return pd.DataFrame(each, index=list(self.methods))

    def seeds(self, measure: str, shots: int | None) -> int:
        """How many seeds most methods have."""
        return int(np.nanmax(self.table(measure, shots, "seeds").to_numpy(float), initial=1))


def read_sweep(rows: Iterable[Row], predictions: Path | None = None) -> Sweep:
    """Makes frames of the rows of a results file.

    Args:
      rows: one per run, as `training.run` writes them.
      predictions: folder of the answers to each test image, by which methods are compared in pairs; `None` reads none.
    """
    named = _named_by_rate([{**row, **{key: _writable(row[key]) for key in ("method", "dataset")}} for row in rows])
    runs = run_frame(named, _accuracies)
    shots = _shots(named)
    measures = tuple(dict.fromkeys(runs["measure"])) or (ACCURACY,)
    datasets = ordered_datasets(row["dataset"] for row in named)
    finished = {tuple(line) for line in runs[_KEY].itertuples(index=False)}
    return Sweep(
        rows=named,
        cells=cell_frame(runs, shots, datasets, Answers(predictions)),
        measures=measures,
        methods=ordered_methods(row["method"] for row in named),
        datasets=datasets,
        shots=shots,
        failures=[row for row in named if not _is_ok(row) and _key(row) not in finished],
    )


def _writable(name: str) -> str:
    """A name whose halves of surrogate pairs, which folders' names may have and data frames refuse, are escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def run_frame(rows: Sequence[Row], values: Callable[[Row], Mapping[str, float | None]]) -> pd.DataFrame:
    """A line for each finished run and each of its numbers.

    Args:
      rows: of the results.
      values: the numbers of a row, by name.

    Returns:
      Columns `method`, `dataset`, `shots`, `seed`, `measure`, `value`, `images` (how many it is of), `predictions` (the
      file of the answers), and `drawn` (False for a method that draws no training images, whose numbers are the same
      for any number of shots).
    """
    lines = []
    for row in filter(_is_ok, rows):
        for measure, value in values(row).items():
            plain = measure == ACCURACY
            images = row.get("images") if plain else (row.get("tested_images") or {}).get(measure)
            file = (row.get("predictions") or {}).get("test" if plain else measure)
            number = float("nan") if value is None else float(value)
            lines.append((*_key(row), measure, number, images or math.nan, file, _is_drawn(row)))
    columns = [*_KEY, "measure", "value", "images", "predictions", "drawn"]
    return pd.DataFrame(lines, columns=columns).astype({"drawn": bool}).drop_duplicates([*_KEY, "measure"], keep="last")


def cell_frame(
    runs: pd.DataFrame, shots: Sequence[int | None], datasets: Sequence[str], answers: Answers
) -> pd.DataFrame:
    """Means over seeds and datasets with their standard errors: `Sweep.cells`."""
    counts = pd.DataFrame({"shots": [count or _ALL for count in shots]})
    same = runs[~runs["drawn"]].drop(columns="shots").merge(counts, how="cross")
    groups = (pd.concat([runs[runs["drawn"]], same]) if len(same) else runs).groupby(_CELL, sort=False)
    cells = groups.agg(
        mean=("value", "mean"), seeds=("value", "size"), drawn=("drawn", "all"), deviation=("value", "std")
    )
    cells["images"] = groups["images"].min().where(groups["images"].count() == cells["seeds"])
    cells["images_error"] = [
        binomial_error(mean, images) if images >= 1 and not math.isnan(mean) else math.nan
        for mean, images in zip(cells["mean"], cells["images"], strict=True)
    ]
    cells["seeds_error"] = (cells.pop("deviation") / np.sqrt(cells["seeds"])).fillna(0.0)
    means = cells["mean"].to_dict()
    errors = cells["images_error"].to_dict()
    for measure, *where in list(errors):
        if measure == "H":  # its rows have both halves
            base = ("base", *where)
            new = ("new", *where)
            errors["H", *where] = harmonic_error(means[base], means[new], (errors[base], errors[new]))
    cells["images_error"] = list(errors.values())
    cells["error"] = np.hypot(cells["images_error"], cells["seeds_error"])
    cells["correct"] = [
        answers.correct(dataset if measure == ACCURACY else f"{dataset}/{measure}", files, values)
        for (measure, _, dataset, _), files, values in zip(
            cells.index, groups["predictions"].agg(list), groups["value"].agg(list), strict=True
        )
    ]
    if len(datasets) > 1:
        cells = pd.concat([cells, _averages(cells, len(datasets))])
    keys = [(*where, None if count == _ALL else count) for *where, count in cells.index]
    return cells.set_axis(pd.MultiIndex.from_tuples(keys, names=_CELL)) if keys else cells


def cell_lines(cells: pd.DataFrame) -> dict[CellKey, Row]:
    """The lines of `cell_frame` by measure, method, dataset and shots. The index of a frame has NaN for `None`."""
    lines = cells.to_dict("index").items()
    return {(*where, None if pd.isna(count) else int(count)): line for (*where, count), line in lines}


def _averages(cells: pd.DataFrame, datasets: int) -> pd.DataFrame:
    """Over the datasets, where all have a result. Each has images and draws of its own: errors are independent."""
    errors = ["images_error", "seeds_error", "error"]
    squares = cells.drop(columns="images")
    squares[errors] = cells[errors].pow(2).fillna(math.inf)
    groups = squares.drop(columns="correct").groupby(["measure", "method", "shots"], sort=False)
    means = groups.agg({"mean": "mean", "seeds": "min", "drawn": "all"} | dict.fromkeys(errors, "sum"))
    means[errors] = means[errors].replace(math.inf, math.nan).pow(0.5) / datasets
    means = means[groups.size() == datasets].assign(correct=None, dataset=AVERAGE)
    return means.set_index("dataset", append=True).reorder_levels(_CELL)


def _accuracies(row: Row) -> dict[str, float | None]:
    """The accuracies of a run by measure; base and new have a harmonic mean."""
    accuracies = dict(row.get("accuracies") or {ACCURACY: row.get("accuracy")})
    if {"base", "new"} <= accuracies.keys():
        base = accuracies["base"]
        new = accuracies["new"]
        accuracies["H"] = 2 * base * new / (base + new) if base + new > 0 else 0.0
    return accuracies


def _is_ok(row: Row) -> bool:
    return row.get("status", "ok") == "ok"


def _is_drawn(row: Row) -> bool:
    """Whether a run depends on a draw of images: zero-shot does not, and has no shots."""
    return bool(row.get("shots")) or row.get("protocol") == "full"


def _key(row: Row) -> tuple[str, str, int, int | None]:
    return row["method"], row["dataset"], row.get("shots") or _ALL, row.get("seed") if _is_drawn(row) else 0


def _shots(rows: Sequence[Row]) -> tuple[int | None, ...]:
    return tuple(sorted({row["shots"] for row in rows if row.get("shots")})) or (None,)


def _named_by_rate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which a method that was trained at several learning rates on the same draw goes by as many names."""
    rates: dict[tuple[str, str, int, int | None], set[float]] = {}
    for row in rows:
        if row.get("learning_rate") is not None:
            rates.setdefault(_key(row), set()).add(row["learning_rate"])
    methods = {key[0] for key, of_draw in rates.items() if len(of_draw) > 1}
    for row in rows:
        if row["method"] in methods and row.get("learning_rate") is not None:
            row["method"] = at_rate(row["method"], row["learning_rate"])
    return rows
