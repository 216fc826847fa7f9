"""Learning rates by method, as a choice on validation images writes them and later runs take them up: `rates.json`."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.checks import check_number, check_text, check_value
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.training.packs import Pack
from clipbias.training.results import Row

FILE = "rates.json"
# What one rate is chosen for: each method, on all datasets and shots together, or each method, dataset and shots.
METHOD, CELL, NONE = "method", "cell", "none"
CHOICES = (METHOD, CELL, NONE)

# A method, a dataset and a number of shots.
CellName = tuple[str, str, int]


@dataclasses.dataclass(frozen=True)
class Tried:
    """What a learning rate came to on validation images.

    Attributes:
      learning_rate: the rate.
      accuracy: in percent, the mean over the cells that it was chosen for of each one's mean over the seeds; `None`
        where a run at this rate failed.
      loss: the same of the mean cross-entropy.
    """

    learning_rate: float
    accuracy: float | None
    loss: float | None


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rate that was chosen, what for (`METHOD` or `CELL`), of how many cells, and all that were tried by rate."""

    learning_rate: float
    scope: str
    cells: int
    tried: tuple[Tried, ...]

    def facts(self) -> dict[str, Any]:
        """What rows say of it, as JSON values."""
        return {"for": self.scope, "cells": self.cells, "tried": [dataclasses.asdict(one) for one in self.tried]}

    @classmethod
    def of(cls, learning_rate: float, facts: Mapping[str, Any]) -> "Choice":
        """The inverse of `facts`."""
        return cls(learning_rate, facts["for"], facts["cells"], tuple(Tried(**one) for one in facts["tried"]))


def choose(trials: Mapping[CellName, Sequence[Row]], scope: str) -> Choice | None:
    """The learning rate of the highest accuracy on validation images; of equals the lower loss, then the lower rate.

    A rate at which a run failed is not chosen. A cell none of whose runs ended well says nothing, and is left out.

    Args:
      trials: the rows of all that was tried, a row for each rate and seed, by cell.
      scope: what the rate is for, which the result tells.

    Returns:
      `None` where no rate ended well everywhere.
    """
    told = [rows for rows in trials.values() if any(row["status"] == "ok" for row in rows)]
    tried = []
    for rate in sorted({row["learning_rate"] for rows in told for row in rows}):
        each = [[row for row in rows if row["learning_rate"] == rate] for rows in told]
        if not all(rows and all(row["status"] == "ok" for row in rows) for rows in each):
            tried.append(Tried(rate, None, None))
            continue
        means = [
            statistics.fmean(statistics.fmean(row[name] for row in rows) for rows in each)
            for name in ("validation_accuracy", "validation_loss")
        ]
        # The order in which numbers were added is no difference between two rates.
        tried.append(Tried(rate, round(means[0], 9), round(means[1], 9)))
    whole = [(-one.accuracy, one.loss, one.learning_rate) for one in tried if one.accuracy is not None]
    return Choice(min(whole)[2], scope, len(told), tuple(tried)) if whole else None


class Rates:
    """Learning rates by method; some hold for one dataset, or for one number of shots, alone."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.entries = tuple(entries)
        self._by_name = {(one["method"], one.get("dataset"), one.get("shots")): one for one in self.entries}

    def of(self, pack: Pack) -> float | None:
        """That of a pack, the most particular one; `None` where its method has none."""
        method, dataset, shots = pack.method, pack.dataset, pack.shots
        for name in ((method, dataset, shots), (method, dataset, None), (method, None, None)):
            if name in self._by_name:
                return self._by_name[name]["learning_rate"]
        return None

    @classmethod
    def read(cls, path: Path) -> "Rates":
        """Those of a file. Raises `ClipbiasError` where it is not there or holds something else."""
        if not path.is_file():
            raise ClipbiasError(f"there is no file of learning rates {path}; check --config.rates_file.")
        entries = read_json(path, dict).get("rates")
        check_value(f"rates of {path}", entries, list[dict])
        for one in entries:
            check_text(f"a method of {path}", one.get("method"))
            check_number(f"a learning rate of {path}", one.get("learning_rate"), lowest=0)
        return cls(entries)

    @classmethod
    def chosen(cls, choices: Mapping[CellName, Choice]) -> "Rates":
        """What was chosen, an entry for each choice with all that was tried."""
        entries: list[dict[str, Any]] = []
        for (method, dataset, shots), choice in choices.items():
            where = {"dataset": dataset, "shots": shots} if choice.scope == CELL else {}
            one = {"method": method, **where, "learning_rate": choice.learning_rate, **choice.facts()}
            if one not in entries:
                entries.append(one)
        return cls(entries)

    def write(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Writes them, atomically, with what tells where they come from."""
        content = {"rates": list(self.entries), "chosen": dict(provenance)}
        write_text(path, json.dumps(content, indent=2) + "\n")
