"""The page of all bundles: methods x datasets with intervals and paired tests, and how far each number can be trusted.

A table holds a single protocol, number of shots, backbone and validation policy. Zero-shot, which selects nothing,
stands in every table as the reference.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.bundles import numbers
from clipbias.bundles.check import Findings, Hub, check_bundle, hub_hashes
from clipbias.bundles.files import INDEX, Bundle, DatasetFile, Line, read_bundle
from clipbias.bundles.numbers import Number
from clipbias.errors import ClipbiasError
from clipbias.report import pages
from clipbias.report.accuracy_tables import published_tables, shots_words
from clipbias.report.frames import AVERAGE
from clipbias.report.names import draws, method_name, ordered_methods
from clipbias.report.published import dataset_name, ordered_datasets
from clipbias.report.table import Table
from clipbias.training.spec import stable_hash

REPORTED, RECOMPUTED, REPRODUCED = "reported", "recomputed", "reproduced"
TIERS = {
    REPORTED: "the bundle's own number: predictions are missing, or the check of the bundle found a difference",
    RECOMPUTED: "computed here from the predictions of every test image",
    REPRODUCED: "a second bundle, made in another run, has the same settings and a result that is not distinguishable",
}
UNCLEAR = "not distinguishable"


@dataclasses.dataclass(frozen=True)
class Submission:
    """A bundle with the findings of its check."""

    bundle: Bundle
    findings: Findings

    @property
    def started(self) -> tuple[str, ...]:
        """When its sweeps began, by which a copy is told from a second run."""
        return tuple(str(source.get("started")) for source in self.bundle.facts["sources"])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one dataset.

    Attributes:
      number: of all seeds of all bundles.
      tier: of `TIERS`.
      note: seeds and bundles in words.
    """

    number: Number
    tier: str
    note: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """One table: `rows[name][column]`.

    Attributes:
      protocol, measure, shots, backbone, policy: what all its numbers share.
      rows: by the name of the method.
    """

    protocol: str
    measure: str
    shots: int
    backbone: str
    policy: str
    rows: Mapping[str, Mapping[str, Cell]]

    @property
    def columns(self) -> tuple[str, ...]:
        """Datasets, and their average if there are several."""
        datasets = ordered_datasets(itertools.chain.from_iterable(self.rows.values()))
        return (*datasets, *[AVERAGE] * (len(datasets) > 1))

    @property
    def title(self) -> str:
        """In words."""
        measure = "" if self.measure == "accuracy" else f", {self.measure}"
        return f"{self.protocol.replace('_', ' ').capitalize()}{measure}, {shots_words(self.shots)}, {self.backbone}"

    def number(self, name: str, column: str) -> Number | None:
        """The number of a method; its average over all datasets where it has all."""
        if column != AVERAGE:
            return self.rows[name][column].number if column in self.rows[name] else None
        each = [self.rows[name][dataset].number for dataset in self.columns[:-1] if dataset in self.rows[name]]
        return numbers.average(each) if len(each) == len(self.columns) - 1 else None

    def difference(self, one: str, other: str, column: str) -> Number | None:
        """`one` less `other`, paired by image; `None` where either has no number."""
        if self.number(one, column) is None or self.number(other, column) is None:
            return None
        datasets = self.columns[:-1] if column == AVERAGE else (column,)
        each = [numbers.difference(self.rows[one][x].number, self.rows[other][x].number) for x in datasets]
        return numbers.average(each)


def read_submissions(root: Path, *, hub: Hub = hub_hashes) -> tuple[list[Submission], list[str]]:
    """Reads and checks the bundles below a folder; returns them, and a sentence for each that cannot be read."""
    found, failures = [], []
    for folder in sorted(path.parent for path in root.glob(f"*/{INDEX}")):
        try:
            bundle = read_bundle(folder)
            found.append(Submission(bundle, check_bundle(bundle, folder, hub=hub)))
        except ClipbiasError as error:
            failures.append(str(error))
    return found, failures


# What two runs of a cell share; they differ in their seed.
_SETTINGS = ("options", "recipe", "source", "descriptions", "template", "dtype", "targets", "data")
# A run on the page: which submission, its file, and its line.
_Run = tuple[Submission, DatasetFile, Line]


def make_grids(submissions: Sequence[Submission]) -> list[Grid]:
    """The tables, those with most shots first."""
    grids: dict[tuple[str, int, str, str], list[_Run]] = {}
    references: dict[tuple[str, str], list[_Run]] = {}
    for each in submissions:
        model = each.bundle.facts["model"]
        backbone = f"{model['name']} at {model['resolution']} px (weights {model['fingerprint'][:8]})"
        for file in each.bundle.datasets.values():
            for line in file.lines:
                if draws(line["method"]):
                    key = line["protocol"], line["shots"], backbone, line["validation"]
                    grids.setdefault(key, []).append((each, file, line))
                else:
                    references.setdefault((line["protocol"], backbone), []).append((each, file, line))
    found = []
    for key in sorted(grids, key=lambda key: (key[0] != "few_shot", key[0], -key[1], *key[2:])):
        protocol, shots, backbone, policy = key
        datasets = {line["dataset"] for _, _, line in grids[key]}
        runs = grids[key] + [run for run in references.get((protocol, backbone), []) if run[2]["dataset"] in datasets]
        for measure in _measures(runs):
            rows: dict[str, dict[str, Cell]] = {}
            for name, dataset, own in _cells(runs):
                if (cell := _cell(own, measure)) is not None:
                    rows.setdefault(name, {})[dataset] = cell
            found.append(Grid(protocol, measure, shots, backbone, policy, rows))
    return found


def _measures(runs: Iterable[_Run]) -> list[str]:
    names = dict.fromkeys(name for _, _, line in runs for name in line["lists"])
    measures = ["accuracy" if name == "test" else name for name in names]
    return [numbers.HARMONIC, *measures] if {numbers.BASE, numbers.NEW} <= set(measures) else measures


def _cells(runs: Sequence[_Run]) -> Iterable[tuple[str, str, list[_Run]]]:
    """The runs of each row and dataset. Other settings of a method are rows of their own, never pooled."""
    variants: dict[tuple[str, str], dict[str, list[_Run]]] = {}
    for run in runs:
        settings = stable_hash({name: run[2].get(name) for name in _SETTINGS})
        variants.setdefault((run[2]["method"], run[2]["dataset"]), {}).setdefault(settings, []).append(run)
    for method in ordered_methods(method for method, _ in variants):
        for (name, dataset), each in variants.items():
            if name == method:
                for number, own in enumerate(each.values(), start=1):
                    recipe = " (authors' recipe)" if own[0][2]["conditions"]["recipe"] == "authors'" else ""
                    yield f"{method_name(name)}{recipe}{f', settings {number}' if number > 1 else ''}", dataset, own


def _cell(runs: Sequence[_Run], measure: str) -> Cell | None:
    by_bundle: dict[str, list[_Run]] = {}
    for run in runs:
        by_bundle.setdefault(run[0].bundle.name, []).append(run)
    each = {name: _number(own, measure) for name, own in by_bundle.items()}
    known = {name: number for name, number in each.items() if number is not None}
    # H has no images of its own; else a number without them is a bundle's own.
    clean = {
        name: number
        for name, number in known.items()
        if not by_bundle[name][0][0].findings.differs and (measure == numbers.HARMONIC or number.right is not None)
    }
    used = clean or known
    seeds = {run[2]["seed"]: run for run in reversed(runs) if run[0].bundle.name in used}
    number = _number([seeds[seed] for seed in sorted(seeds)], measure)
    if number is None:
        return None
    apart = {
        f"{one} less {other}": numbers.difference(clean[one], clean[other])
        for one, other in itertools.combinations(clean, 2)
        if by_bundle[one][0][0].started != by_bundle[other][0][0].started
    }
    tier = RECOMPUTED if clean else REPORTED
    if apart and not any(one.is_clear for one in apart.values()):
        tier = REPRODUCED
    told = [f"seeds {', '.join(map(str, sorted(seeds)))}", ", ".join(used)]
    told += [f"{name}: {_signed(one)}{', they differ' * one.is_clear}" for name, one in apart.items()]
    return Cell(number, tier, "; ".join([*told, tier]))


def _number(runs: Sequence[_Run], measure: str) -> Number | None:
    """From predictions where all are there, else as reported, with the error of the test images alone."""
    evaluation = "test" if measure == "accuracy" else measure
    halves = [numbers.BASE, numbers.NEW] if measure == numbers.HARMONIC else [evaluation]
    each = [[file.predictions.get((line["key"], half)) for _, file, line in runs] for half in halves]
    known = [[run for run in half if run is not None] for half in each]
    if runs and all(len(half) == len(runs) for half in known):
        return numbers.harmonic(*known) if len(known) == 2 else numbers.mean(known[0])
    values = [line["accuracy"] for _, _, line in runs if evaluation == "test" and "accuracy" in line]
    if not values:
        return None
    value, images = sum(values) / len(values), min(line["images"] for _, _, line in runs)
    return Number(value, math.sqrt(value * (100 - value) / images), 0.0, len(values))


def _signed(number: Number) -> str:
    low, high = number.interval
    return f"{number.value:+.1f} ({low:+.1f} to {high:+.1f})"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A cell in words: its number, interval, difference to the best of the column, and tier."""

    number: str = "–"
    interval: str = ""
    difference: str = ""
    best: bool = False
    tier: str = ""
    note: str = ""


def show(grid: Grid) -> list[tuple[str, list[Shown]]]:
    """The rows of a table in words."""
    best: dict[str, str] = {}
    for column in grid.columns:
        values = {name: number.value for name in grid.rows if (number := grid.number(name, column)) is not None}
        best[column] = max(values, key=lambda name: values[name]) if len(values) > 1 else ""
    return [(name, [_shown(grid, name, column, best[column]) for column in grid.columns]) for name in grid.rows]


def _shown(grid: Grid, name: str, column: str, best: str) -> Shown:
    number = grid.number(name, column)
    if number is None:
        return Shown()
    low, high = number.interval
    told, cells = "", grid.rows[name]
    if best and name != best and (apart := grid.difference(name, best, column)) is not None:
        told = _signed(apart) if apart.is_clear else UNCLEAR
    own = [cells[column]] if column != AVERAGE else [*cells.values()]
    tiers = sorted((cell.tier for cell in own), key=[*TIERS].index)
    note = cells[column].note if column != AVERAGE else f"mean of {len(cells)} datasets; {tiers[0]}"
    return Shown(f"{number.value:.1f}", f"{low:.1f} to {high:.1f}", told, name == best, tiers[0], note)


def pair_table(grid: Grid) -> Table | None:
    """All pairs of methods on the last column: row less column; `None` for fewer than three methods."""
    column = grid.columns[-1]
    names = [name for name in grid.rows if grid.number(name, column) is not None]
    if len(names) < 3:
        return None
    rows = []
    for one in names:
        pairs = [grid.difference(one, other, column) if one != other else None for other in names]
        rows.append([one, *("" if x is None else _signed(x) if x.is_clear else UNCLEAR for x in pairs)])
    where = "the average over datasets" if column == AVERAGE else dataset_name(column)
    caption = f"Row less column on {where}: points and 95 % interval, paired by image; not corrected for many pairs."
    return Table("", caption, ("Method", *names), rows, words=set(range(1, len(names) + 1)))


def write_page(submissions: Sequence[Submission], path: Path, failures: Sequence[str] = ()) -> Path:
    """Writes the page, which needs nothing else and works without scripts."""
    grids = make_grids(submissions)
    filters: dict[str, dict[Any, None]] = {
        "protocol": dict.fromkeys(grid.protocol for grid in grids),
        "shots": dict.fromkeys(grid.shots for grid in grids),
        "backbone": dict.fromkeys(grid.backbone for grid in grids),
        "policy": dict.fromkeys(grid.policy for grid in grids),
    }
    return pages.write_page(
        path,
        "bundles",
        title="Results",
        grids=[(grid, list(map(dataset_name, grid.columns)), show(grid), pair_table(grid)) for grid in grids],
        filters=filters,
        tiers=TIERS,
        submissions=submissions,
        published=published_tables(),
        failures=failures,
    )
