"""Learning rates of a sweep: selected from rows on validation images, and kept in a file for later sweeps."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.training.spec import Row, RunSpec
from clipbias.tuning.recipe import Recipe

RATES = "rates.json"
# Scopes of a selection: a rate for each method over all datasets and shots; a rate for each method, dataset and shots;
# no selection, so that every rate is tested.
PER_METHOD = "method"
PER_CELL = "cell"
UNSELECTED_RATES = "none"
_CELL = ["method", "dataset", "shots"]
# "All images" in the frame's column `shots`, where `None` would make floats of all numbers, and no group.
_ALL = 0


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates by method. Entries for a cell also name its `dataset` and `shots` (`None` for all images)."""

    entries: tuple[Mapping[str, Any], ...] = ()
    model: str | None = None  # name of the frozen model that they were selected for, where it is known

    def entry(self, method: str, dataset: str, shots: int | None) -> Mapping[str, Any]:
        """Returns the entry of the cell, else of the dataset, else of the method, else an empty one."""
        cell = {"method": method, "dataset": dataset, "shots": shots}
        for names in (_CELL, _CELL[:2], _CELL[:1]):
            for entry in self.entries:
                if {name: entry[name] for name in _CELL if name in entry} == {name: cell[name] for name in names}:
                    return entry
        return {}

    def of(self, method: str, dataset: str, shots: int | None) -> float | None:
        return self.entry(method, dataset, shots).get("learning_rate")

    def unlisted(self, specs: Sequence[RunSpec], common: Recipe) -> list[str]:
        """Returns a sentence for each method, dataset and shots that train at the common rate, for want of an entry."""
        # A recipe of a method's authors keeps their rate, whatever the entries are.
        runs = {
            (spec.method, spec.dataset, spec.shots)
            for spec in specs
            if spec.recipe is not None and spec.learning_rate == common.learning_rate
        }
        return [
            f"no learning rate was selected for {method} on {dataset} with {shots or 'all'} images"
            f"{' per class' if shots else ''}; it trains at {common.learning_rate:g}."
            for method, dataset, shots in sorted(runs, key=str)
            if self.of(method, dataset, shots) is None
        ]

    @classmethod
    def read(cls, path: Path) -> "Rates":
        """Reads a file that `write` wrote. Raises `ClipbiasError` where it is missing, or holds something else."""
        if not path.is_file():
            raise ClipbiasError(f"there is no file of learning rates {path}; check --config.rates_file.")
        content = read_json(path, dict, what="a file of learning rates")
        entries = content.get("rates")
        kinds = {"method": str, "learning_rate": int | float}
        valid = isinstance(entries, list) and all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
            for entry in entries
        )
        if not valid:
            raise ClipbiasError(f"{path} holds no learning rates by method; each needs a method and a learning_rate.")
        chosen = content.get("chosen")
        return cls(tuple(entries), chosen.get("model") if isinstance(chosen, dict) else None)

    def write(self, path: Path, facts: Mapping[str, object]) -> None:
        write_text(path, json.dumps({"rates": list(self.entries), "chosen": dict(facts)}, indent=2) + "\n")


def select_learning_rates(rows: Sequence[Row], scope: str) -> Rates:
    """Selects the learning rate of the highest accuracy on validation images; of equals the lower loss, then rate.

    Accuracy and loss are means over cells (dataset, shots) of means over seeds. A rate at which a run failed loses. A
    cell in which every run failed does not count. The scope is `PER_METHOD` or `PER_CELL`.
    """
    if not rows:
        return Rates()
    names = ["status", "learning_rate", "validation_accuracy", "validation_loss"]
    lines = [{name: row.get(name) for name in (*_CELL, *names)} for row in rows]
    frame = pd.DataFrame([line | {"shots": line["shots"] or _ALL} for line in lines])
    frame = frame.groupby(_CELL, sort=False).filter(lambda cell: (cell.status == "ok").any())
    entries: list[dict[str, Any]] = []
    for where, group in frame.groupby(_CELL[:1] if scope == PER_METHOD else _CELL, sort=False):
        cells = group.groupby([*_CELL, "learning_rate"])[names[2:]].mean()
        # Rounded, so that the order of additions, which follows the order of rows, decides no tie.
        candidates = cells.groupby("learning_rate").mean().round(9)
        # It would leave a cell of the table empty, whatever it reaches in the others.
        candidates[group.groupby("learning_rate").status.agg(lambda status: (status != "ok").any())] = None
        best = (
            candidates.dropna()
            .reset_index()
            .sort_values(["validation_accuracy", "validation_loss", "learning_rate"], ascending=[False, True, True])
        )
        if best.empty:
            continue
        entry = dict(zip(_CELL, where, strict=False)) | {"learning_rate": float(best.learning_rate.iloc[0])}
        entry |= {"for": scope, "cells": len(group.groupby(_CELL))}
        entry["tried"] = [
            {"learning_rate": float(rate), "accuracy": _number(accuracy), "loss": _number(loss)}
            for rate, accuracy, loss in candidates.itertuples()
        ]
        if "shots" in entry:
            entry["shots"] = None if entry["shots"] == _ALL else int(entry["shots"])
        entries.append(entry)
    return Rates(tuple(entries))


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
