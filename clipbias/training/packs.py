"""What a grid is made of.

A *cell* is one number of the table: a method, a dataset, a number of shots, a seed and, where several are compared, a
learning rate. Cells that differ in seed and learning rate alone are a *pack*: they train side by side, as the *runs* of
one program, which on an accelerator, and on small models anywhere, takes less time than one after another.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipbias.data import Dataset, Split, protocols
from clipbias.errors import ClipbiasError
from clipbias.tuning import make_method

# More runs than this gain nothing side by side and delay the first result.
MOST_RUNS = 32


@dataclasses.dataclass(frozen=True)
class Pack:
    """Cells that train side by side: one method on one dataset with one number of shots.

    A learning rate of `None` is the recipe's. A pack that `tries` is a trial, to choose one of its learning rates by:
    validation images take the place of those that it would be tested on.
    """

    method: str
    dataset: str
    shots: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float | None, ...] = (None,)
    tries: bool = False

    @property
    def cells(self) -> list[tuple[float | None, int]]:
        """The learning rate and the seed of each cell, in the order of the runs."""
        return list(itertools.product(self.learning_rates, self.seeds))

    @property
    def by_rate(self) -> list["Pack"]:
        """The same cells as a pack for each learning rate."""
        return [dataclasses.replace(self, learning_rates=(rate,)) for rate in self.learning_rates]

    def name(self, *rates: float | None) -> str:
        """For files: the method, the dataset, the shots, and the learning rates where they are not the recipe's."""
        rate = "_".join(f"{rate:g}" for rate in rates if rate is not None)
        name = f"{_file_name(self.method)}-{_file_name(self.dataset)}-{self.shots}shots"
        return name + (f"-rate{rate}" if rate else "")

    @property
    def folder_name(self) -> str:
        """Names all cells together."""
        return f"{self.name(*self.learning_rates)}-seeds{'_'.join(map(str, self.seeds))}"


def cells_of(packs: Iterable[Pack]) -> int:
    """How many cells they have together."""
    return sum(len(pack.cells) for pack in packs)


def make_packs(
    methods: Sequence[str],
    datasets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    runs_per_program: int = 0,
    learning_rates: Sequence[float] = (),
    along: int = 1,
) -> list[Pack]:
    """All cells of a grid in packs, dataset by dataset. A method that draws no image is one cell per dataset.

    Args:
      methods, datasets, shots, seeds: what is combined.
      options: options by method name.
      runs_per_program: cells of a pack at most; 0 as many as are worth it.
      learning_rates: those that are compared; none for the recipe's alone.
      along: devices along the mesh's `run` axis, which a pack should not leave idle.

    Raises:
      ClipbiasError: there is nothing to combine, or no such method or option.
    """
    for name, values in {"methods": methods, "datasets": datasets, "shots": shots, "seeds": seeds}.items():
        if not values:
            raise ClipbiasError(f"there are no {name}, so there is nothing to run; give some.")
    made = {name: make_method(name, **(options or {}).get(name, {})) for name in methods}
    most = runs_per_program or max(MOST_RUNS, len(seeds), along)
    packs = []
    for dataset, method in itertools.product(datasets, methods):
        if not made[method].draws:
            packs.append(Pack(method, dataset, 0, (0,)))
            continue
        rates = tuple(learning_rates) if learning_rates and made[method].trains else (None,)
        for count in shots:
            if len(seeds) > most:  # so few that not even the seeds of one learning rate go together
                parts = [(tuple(some), (rate,)) for rate in rates for some in _in_parts(seeds, most)]
            else:
                parts = [(tuple(seeds), tuple(some)) for some in _in_parts(rates, most // len(seeds))]
            packs += [Pack(method, dataset, count, *part) for part in parts]
    return packs


def _in_parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def choice_images(dataset: str, plan: protocols.Plan) -> Split:
    """The validation images of a draw. Raises `ClipbiasError` where there are none."""
    split = plan.validation()
    if split is None or not len(split):
        raise ClipbiasError(
            f"{dataset}: there are no validation images under the protocol {plan.protocol}; a learning rate cannot be "
            "chosen there, so leave --config.learning_rates empty, or test them all: --config.choose=none."
        )
    return split


def choice_splits(pack: Pack, plans: Sequence[protocols.Plan]) -> list[tuple[Split, list[int]]]:
    """The validation images that a trial is judged by, the same ones once, with the seeds whose images they are.

    Raises:
      ClipbiasError: there are none.
    """
    found: dict[tuple[str, ...], tuple[Split, list[int]]] = {}
    for seed, plan in zip(pack.seeds, plans, strict=True):
        split = choice_images(pack.dataset, plan)
        found.setdefault(tuple(split.keys), (split, []))[1].append(seed)
    return list(found.values())


def evaluated_on(pack: Pack, plans: Sequence[protocols.Plan]) -> list[tuple[Dataset, Split]]:
    """Whose classes and which images a pack is evaluated on: test images, of a trial validation images.

    Args:
      pack: all its runs are evaluated on each of them.
      plans: its draws, `cache.plans(pack)`.
    """
    if pack.tries:
        return [(plans[0].source, split) for split, _ in choice_splits(pack, plans)]
    return [(one.dataset, one.dataset.split("test")) for one in plans[0].evaluations]
