"""From one line per finished run to means, spreads and averages over datasets."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.data.confusion import binomial_error
from clipbias.report import errors
from clipbias.report.answered import Answered
from clipbias.report.chosen import Chosen, chosen_rates
from clipbias.report.names import at_rate, ordered_methods
from clipbias.report.published import ordered_datasets

ACCURACY = "accuracy"
# How a run's calibration is called in tables.
CALIBRATION = {
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "temperature": "temperature",
    "ece_at_temperature": "ECE at it",
    "adaptive_ece_at_temperature": "adaptive ECE at it",
}
# What a run costs.
PARAMETERS, TRAINING, PER_IMAGE = "parameters", "training_seconds", "seconds_per_image"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that ended with an error, and what the error said."""

    method: str
    dataset: str
    shots: int
    seed: int | None
    error: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """The finished runs of one method on one dataset with one number of shots.

    Attributes:
      values: accuracy in percent per seed; a method that draws nothing at random has the one seed `None`.
      failures: the runs that did not finish.
      images_error: the standard error of their mean that the choice of test images makes (`binomial_error`); `None`
        where it is not known how many they were.
      correct: by seed, whether each test image was right, bool `[n]`; empty where that was not kept or asked for.
    """

    values: Mapping[int | None, float]
    failures: tuple[Failure, ...] = ()
    images_error: float | None = None
    correct: Mapping[int | None, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, or None where no run finished."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds (divided by n - 1), or None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean, of test images and of seeds (`errors`); `None` where neither is known."""
        if self.images_error is None and len(self.values) < 2:
            return None
        return math.hypot(self.images_error or 0.0, errors.seeds_error([*self.values.values()]))


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the runs of one method had in common or, as sorted distinct values, did not.

    `recipe` holds what its training does otherwise than the common recipe, by the names of that recipe's fields,
    `choices` the learning rates that were chosen on validation images, and `validation` the policies of validation
    (`training.spec.RunSpec`).
    """

    parameters: tuple[int, ...]
    parameters_vision: tuple[int, ...]
    parameters_text: tuple[int, ...]
    learning_rates: tuple[float, ...]
    recipe: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    choices: tuple[Chosen, ...] = ()
    validation: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Summary:
    """All finished and failed runs, grouped for tables.

    Attributes:
      methods, datasets: in the order in which they are shown.
      shots: the numbers of shots, ascending, without zero-shot's 0.
      measures: what was measured: "accuracy", or base, new, H for a base-to-new protocol.
      cells: by (measure, method, dataset, shots).
      learning_rates: by dataset, all that its runs by the common recipe used.
      calibration: the same of what the runs' calibration was measured by, `CALIBRATION` with the name of the evaluation
        before it where there are several; `None` where no run was measured.
      costs: the same of `PARAMETERS`, `TRAINING` and `PER_IMAGE`; `None` where no run was measured.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    measures: tuple[str, ...]
    cells: Mapping[tuple[str, str, str, int], Cell]
    facts: Mapping[str, Facts]
    learning_rates: Mapping[str, tuple[float, ...]]
    failures: tuple[Failure, ...]
    calibration: "Summary | None" = None
    costs: "Summary | None" = None

    def cell(self, method: str, dataset: str, shots: int, measure: str = ACCURACY) -> Cell | None:
        """The cell to show for that many shots; a method without shots has the same one everywhere."""
        found = self.cells.get((measure, method, dataset, shots))
        if found is None and (without := self.cells.get((measure, method, dataset, 0))):
            found = without if set(without.values) <= {None} else None
        return found

    def average(self, method: str, shots: int, measure: str = ACCURACY) -> Cell | None:
        """The average over datasets, per seed; None unless every dataset has a finished run.

        Where the datasets do not share the same seeds, a spread over seeds means nothing: the one value is then
        the mean of the datasets' means, under the seed None.
        """
        cells = [self.cell(method, dataset, shots, measure) for dataset in self.datasets]
        finished = [cell.values for cell in cells if cell is not None and cell.values]
        if not finished or len(finished) < len(cells):
            return None
        seeds = set(finished[0])
        if any(set(values) != seeds for values in finished):
            return Cell({None: statistics.fmean(statistics.fmean(values.values()) for values in finished)})
        # Datasets have images of their own.
        each = [cell.images_error for cell in cells if cell is not None and cell.images_error is not None]
        error = math.hypot(*each) / len(cells) if len(each) == len(cells) else None
        values = {seed: statistics.fmean(values[seed] for values in finished) for seed in finished[0]}
        return Cell(values, images_error=error)

    def seeds(self, shots: int, measure: str = ACCURACY) -> tuple[int, ...]:
        """All seeds used with that many shots, ascending."""
        cells = [cell for (of, _, _, count), cell in self.cells.items() if (of, count) == (measure, shots)]
        return tuple(sorted({seed for cell in cells for seed in cell.values if seed is not None}))


def _measured(row: Mapping[str, Any]) -> dict[str, float] | str:
    """The accuracies of a finished run by measure, or what is wrong with the row."""
    if row.get("status", "ok") != "ok":
        return str(row.get("error") or "no reason was recorded")
    accuracies = row.get("accuracies") or {ACCURACY: row.get("accuracy")}
    for measure, value in accuracies.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{measure} is {value}, not a number"
    measured = {measure: float(value) for measure, value in accuracies.items()}
    if {"base", "new"} <= measured.keys() and "H" not in measured:
        base, new = measured["base"], measured["new"]
        measured["H"] = 2 * base * new / (base + new) if base + new > 0 else 0.0
    return measured


# Of rows whose numbers are no accuracies: no number of test images says how far these may be off.
_NO_IMAGES: Mapping[str, Any] = {"images": None, "tested_images": None, "predictions": None}


def _distinct(rows: Sequence[Mapping[str, Any]], field: str) -> tuple:
    return tuple(sorted({row[field] for row in rows if row.get(field) is not None}))


def _named_by_rate(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in which a method that was trained at several learning rates on the same draw goes by as many names."""
    rates: dict[tuple, set[float]] = {}
    for row in rows:
        if row.get("learning_rate") is not None:
            cell = (row["method"], row["dataset"], row.get("shots"), row.get("seed"), row.get("protocol"))
            rates.setdefault(cell, set()).add(row["learning_rate"])
    several = {cell[0] for cell, found in rates.items() if len(found) > 1}

    def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
        method, rate = row["method"], row.get("learning_rate")
        return {**row, "method": at_rate(method, rate)} if rate is not None and method in several else row

    return [named(row) for row in rows]


def _calibrated(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The finished rows whose calibration is known, with its numbers in place of accuracies."""
    found: list[Mapping[str, Any]] = []
    for row in rows:
        several = row.get("calibrations") or {"": row.get("calibration")}
        numbers = {
            f"{evaluation} {CALIBRATION[name]}".strip(): value
            for evaluation, values in several.items()
            for name, value in (values if isinstance(values, Mapping) else {}).items()
            # Of several evaluations the error alone: the columns would be too many.
            if name in CALIBRATION and (not evaluation or name == "ece")
        }
        if numbers and row.get("status", "ok") == "ok":
            found.append({**row, **_NO_IMAGES, "accuracies": numbers})
    return found


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The finished rows whose costs are known, with these in place of accuracies."""
    found: list[Mapping[str, Any]] = []
    for row in rows:
        numbers = {name: row.get(name) for name in (PARAMETERS, TRAINING, PER_IMAGE)}
        if None not in numbers.values() and row.get("status", "ok") == "ok":
            found.append({**row, **_NO_IMAGES, "accuracies": numbers})
    return found


def summarize(rows: Iterable[Mapping[str, Any]], *, nested: bool = True, predictions: Path | None = None) -> Summary:
    """Groups the rows of a results file.

    Of several rows for the same method, dataset, shots and seed the last counts, except that a failure never
    hides a finished run.

    Args:
      rows: one mapping per run, with `method`, `dataset`, `shots`, `seed`, `protocol`, `accuracy` (percent) or
        `accuracies` (several, by name; base and new get their harmonic mean H), `parameters`, `parameters_vision`,
        `parameters_text`, `seconds`, `learning_rate`, `own_recipe` (what differs from the common one), `validation`
        (the policy), `status` ("ok" or "failed"), `error`, `calibration` or `calibrations` of the evaluations
        (`training.calibration`), and `training_seconds` and `seconds_per_image` (`training.timing`).
      nested: whether the runs' calibration and costs are grouped, too.
      predictions: folder of the answers to each test image, by which differences between methods are told more exactly;
        `None` reads none.

    Returns:
      The summary that the tables and the accuracy figure are made from; empty for no rows.
    """
    finished: dict[tuple, tuple[Mapping[str, Any], dict[str, float]]] = {}
    failed: dict[tuple, Failure] = {}
    rows = _named_by_rate(list(rows))
    calibrated, costs = (_calibrated(rows), _costs(rows)) if nested else ([], [])
    for row in rows:
        method, dataset, shots = row["method"], row["dataset"], int(row.get("shots") or 0)
        protocol = row.get("protocol", "few_shot")
        # What learns from no images draws nothing at random; what learns from all of them still shuffles.
        seed = row.get("seed") if shots or protocol == "full" else None
        measured = _measured(row)
        key = (method, dataset, shots, seed, protocol)
        if isinstance(measured, str):
            failed[key] = Failure(method, dataset, shots, seed, measured)
        else:
            finished[key] = (row, measured)
    failures = {key: failure for key, failure in failed.items() if key not in finished}

    measures = tuple(dict.fromkeys(measure for _, measured in finished.values() for measure in measured))
    measures = measures or (ACCURACY,)
    cells, answers = {}, Answered(predictions)
    for method, dataset, shots, *_ in [*finished, *failures]:
        group = (method, dataset, shots)
        lost = tuple(failure for key, failure in failures.items() if key[:3] == group)
        own = {key[3]: found for key, found in finished.items() if key[:3] == group}
        for measure in measures:
            values = {seed: measured[measure] for seed, (_, measured) in own.items() if measure in measured}
            of = {seed: row for seed, (row, measured) in own.items() if measure in measured}
            error = _images_error(measure, values, of)
            cells[(measure, *group)] = Cell(values, lost, error, answers.correct(measure, of))

    used = [row for row, _ in finished.values()]
    methods = ordered_methods(row["method"] for row in rows)
    datasets = ordered_datasets(row["dataset"] for row in rows)
    trained = [row for row in used if row.get("shots") and not row.get("own_recipe")]
    return Summary(
        methods=methods,
        datasets=datasets,
        shots=tuple(sorted({key[2] for key in [*finished, *failures]} - {0})),
        measures=measures,
        cells=cells,
        facts={method: _facts([row for row in used if row["method"] == method]) for method in methods},
        learning_rates={
            name: _distinct([row for row in trained if row["dataset"] == name], "learning_rate") for name in datasets
        },
        failures=tuple(failures.values()),
        calibration=summarize(calibrated, nested=False) if calibrated else None,
        costs=summarize(costs, nested=False) if costs else None,
    )


def _images_error(
    measure: str, values: Mapping[int | None, float], rows: Mapping[int | None, Mapping[str, Any]]
) -> float | None:
    """The standard error that the choice of test images makes in the mean of a cell's values."""
    if not values:
        return None
    if measure == "H":
        halves = []
        for half in ("base", "new"):
            of: dict[int | None, float] = {
                seed: row["accuracies"][half] for seed, row in rows.items() if half in (row.get("accuracies") or {})
            }
            if len(of) < len(rows):
                return None
            error = _images_error(half, of, rows)
            if error is None:
                return None
            halves.append((statistics.fmean(of.values()), error))
        (base, base_error), (new, new_error) = halves
        return errors.harmonic_error(base, new, (base_error, new_error))
    counts = [
        row.get("images") if measure == ACCURACY else (row.get("tested_images") or {}).get(measure)
        for row in rows.values()
    ]
    known = [count for count in counts if count]
    if len(known) < len(counts):
        return None
    return binomial_error(statistics.fmean(values.values()), min(known))


def _facts(rows: Sequence[Mapping[str, Any]]) -> Facts:
    return Facts(
        parameters=_distinct(rows, "parameters"),
        parameters_vision=_distinct(rows, "parameters_vision"),
        parameters_text=_distinct(rows, "parameters_text"),
        learning_rates=_distinct([row for row in rows if row.get("shots")], "learning_rate"),
        recipe=_recipe([row.get("own_recipe") or {} for row in rows]),
        choices=chosen_rates(rows),
        validation=_distinct(rows, "validation"),
    )


def _recipe(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The distinct values of each field that is in any of the recipes; numbers ascend."""
    found: dict[str, list[Any]] = {}
    for recipe in recipes:
        for name, value in recipe.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {
        name: tuple(sorted(values) if all(isinstance(value, int | float) for value in values) else values)
        for name, values in found.items()
    }
