"""What a list of runs says of a sweep's accuracies: each method's mean over its runs, and the standard error of it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from clipbias.data.confusion import binomial_error
from clipbias.report.errors import seeds_error

# One number, or by the name of what it was measured on.
Number = float | dict[str, float] | None


def mean_accuracies(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> tuple[list[Number], list[Number]]:
    """The mean accuracy of each method over its runs, and its standard error; `None` where it is not known."""
    means: list[Number] = []
    errors: list[Number] = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        single = [row for row in own if row.get("accuracy") is not None]
        if single:
            means.append(statistics.fmean(row["accuracy"] for row in single))
            errors.append(_error([(row, row["accuracy"], row.get("images")) for row in single]))
            continue
        several: dict[str, list[tuple[Mapping[str, Any], float, int | None]]] = {}
        for row in own:
            for name, value in (row.get("accuracies") or {}).items():
                several.setdefault(name, []).append((row, value, (row.get("tested_images") or {}).get(name)))
        means.append({name: statistics.fmean(one[1] for one in found) for name, found in several.items()} or None)
        known = {name: error for name, found in several.items() if (error := _error(found)) is not None}
        errors.append(known or None)
    return means, errors


def single_error(result: Mapping[str, Any]) -> float | None:
    """The standard error of the accuracy of one run that the choice of test images makes."""
    accuracy, images = result.get("accuracy"), result.get("images")
    return binomial_error(accuracy, images) if accuracy is not None and images else None


def _error(found: Sequence[tuple[Mapping[str, Any], float, int | None]]) -> float | None:
    """Of a mean over runs: those of one dataset share its test images, and each dataset and shots has its seeds."""
    if not all(images for _, _, images in found):
        return None
    by_dataset: dict[Any, list[tuple[float, int]]] = {}
    by_cell: dict[Any, list[float]] = {}
    for row, value, images in found:
        by_dataset.setdefault(row["dataset"], []).append((value, images or 1))
        by_cell.setdefault((row["dataset"], row.get("shots")), []).append(value)
    parts = [
        len(own) / len(found) * binomial_error(statistics.fmean(value for value, _ in own), min(n for _, n in own))
        for own in by_dataset.values()
    ]
    parts += [len(values) / len(found) * seeds_error(values) for values in by_cell.values()]
    return math.hypot(*parts)
