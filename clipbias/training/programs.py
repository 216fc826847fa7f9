"""Which packs of a grid train side by side in one program.

Every run of a program takes the same number of steps with arrays of equal shapes, so packs are put together where
method, options and steps are equal and their datasets have about as many classes (what is missing is filled up:
`alike.py`), as long as the device's memory holds them without slower ways. On an accelerator, and on small models
anywhere, many runs in one program take less time than one after another; on several devices they need not talk.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence

from clipbias.errors import ClipbiasError

ZERO_SHOT = "zero_shot"

# The smallest share of real classes that a run may have among its filled-up ones.
LEAST_FILLED = 0.8

# More runs than this gain nothing and delay the first result.
MOST_RUNS = 32


@dataclasses.dataclass(frozen=True)
class Pack:
    """Cells that differ in the seed: one method on one dataset with one number of shots and one learning rate.

    `learning_rate` is `None` where it is the recipe's.
    """

    method: str
    dataset: str
    shots: int
    seeds: tuple[int, ...]
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """Packs that train side by side; `sources` are the datasets of all programs that share one with it."""

    packs: tuple[Pack, ...]
    sources: frozenset[str] = frozenset()


def plan(
    methods: Sequence[str],
    datasets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    runs_per_program: int,
    learning_rates: Sequence[float] = (),
) -> list[Pack]:
    """All packs, dataset by dataset. Zero-shot has nothing to train and is one cell per dataset.

    Args:
      methods, datasets, shots, seeds: what is combined.
      runs_per_program: seeds of a pack at most; 0 all of them.
      learning_rates: each a pack of its own; none for the recipe's.
    """
    for name, values in {"methods": methods, "datasets": datasets, "shots": shots, "seeds": seeds}.items():
        if not values:
            raise ClipbiasError(f"there are no {name}, so there is nothing to run; give some.")
    size = runs_per_program if runs_per_program > 0 else len(seeds)
    packs = []
    for dataset in datasets:
        for method in methods:
            if method == ZERO_SHOT:
                packs.append(Pack(method, dataset, 0, (0,)))
                continue
            for count, rate in itertools.product(shots, learning_rates or (None,)):
                parts = [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]
                packs += [Pack(method, dataset, count, part, rate) for part in parts]
    return packs


def make_programs(
    packs: Sequence[Pack], kind: Callable[[Pack], Hashable | None], fits: Callable[[Sequence[Pack]], bool]
) -> list[Program]:
    """Puts packs together, in their order.

    Args:
      packs: all of them.
      kind: what must be equal within a program; `None` where a pack runs alone.
      fits: whether these packs fit the memory and each other.

    Returns:
      Programs ordered such that those which share datasets follow one another.
    """
    groups: list[list[Pack]] = []
    open_groups: dict[Hashable, list[list[Pack]]] = {}
    for pack in packs:
        key = kind(pack)
        for group in open_groups.get(key, []) if key is not None else []:
            runs = sum(len(member.seeds) for member in group) + len(pack.seeds)
            if runs <= MOST_RUNS and fits([*group, pack]):
                group.append(pack)
                break
        else:
            groups.append([pack])
            if key is not None:
                open_groups.setdefault(key, []).append(groups[-1])
    sources = _connected([{pack.dataset for pack in group} for group in groups])
    programs = [Program(tuple(group), part) for group, part in zip(groups, sources, strict=True)]
    order = list(dict.fromkeys(program.sources for program in programs))
    return sorted(programs, key=lambda program: order.index(program.sources))


def _connected(sets: Sequence[set[str]]) -> list[frozenset[str]]:
    """For each set the union of all sets that it is linked to by common members."""
    parts: list[set[str]] = []
    for one in sets:
        touching = [part for part in parts if part & one]
        parts = [part for part in parts if not part & one] + [set(one).union(*touching)]
    return [frozenset(next(part for part in parts if one <= part)) for one in sets]
