"""A grid dealt to independent jobs: each runs its packs of one work folder, and none waits for another.

Every job deals by itself and all deal alike, since what a pack is planned to cost depends on the configuration and the
datasets alone. The costs are counted in multiplications and additions of the towers' blocks and are rough on purpose:
nothing is traced or compiled for them.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from clipbias.clip.config import TowerConfig
from clipbias.errors import ClipbiasError
from clipbias.training.packs import Pack, evaluated_on
from clipbias.training.trainer import Trainer
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.test_time_method import TestTimeMethod, crops_of

PARTS = "parts"
# A step goes back through what it goes forward through, for about twice the work.
STEP = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the jobs that share a grid, counted from 1."""

    number: int
    of: int

    @classmethod
    def named(cls, name: str) -> "Part | None":
        """The part that "2/4" names; none where the name is empty.

        Raises:
          ClipbiasError: it names no part.
        """
        if not name:
            return None
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", name.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ClipbiasError(f"part is {name!r}; give its number and that of all parts, such as 1/4, from 1 on.")
        return cls(int(found[1]), int(found[2]))

    def folder(self, workdir: Path) -> Path:
        """Where this part's own files lie."""
        return workdir / PARTS / f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def deal(costs: Sequence[float], part: Part) -> list[int]:
    """Which of the packs are a part's, in their order: the dearest first, each to the part that has least so far."""
    loads = [0.0] * part.of
    own = []
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = loads.index(min(loads))
        loads[least] += costs[index]
        if least == part.number - 1:
            own.append(index)
    return sorted(own)


def planned_cost(trainer: Trainer, pack: Pack) -> float:
    """Multiplications and additions of training and evaluating a pack, without heads and what is small beside towers.

    Raises:
      ClipbiasError: a dataset is not there.
    """
    draws = trainer.cache.plans(pack)
    task = trainer.cache.task(pack, draws[0].source)
    method, config, runs = task.method, trainer.clip.config, len(pack.cells)
    changed = jax.eval_shape(method.adapt, task.shapes)
    image = _pass(config.vision, 1 + config.vision.patches)
    texts = len(task.texts) * _pass(config.text, task.tokens.ids.shape[1])
    tested = sum(len(split) for _, split in evaluated_on(pack, draws))
    tested *= 1 + crops_of(method)
    cost = float(tested * image * (runs if changed.changes_vision else 1))
    cost += texts * (tested * runs if method.conditional else runs if changed.changes_text else 1)
    if isinstance(method, TestTimeMethod):
        cost += tested * texts * STEP * runs
    if not method.draws:
        return cost
    drawn = len(draws[0].source.split("train"))
    sampling = sampling_of(method)
    if sampling is not None:
        return cost + max(sampling.passes, 1) * drawn * image * len(pack.seeds)
    for _, recipe in trainer.stages(pack) if method.trains else ():
        steps, rows = recipe.total_steps(drawn), min(drawn, recipe.batch_size)
        of_texts = texts * (rows if method.conditional else 1) if changed.changes_text else 0
        cost += runs * steps * (rows * image * (STEP if changed.changes_vision else 1) + STEP * of_texts)
    return cost


def _pass(tower: TowerConfig, tokens: int) -> int:
    """Multiplications and additions of one example through the blocks of a tower."""
    width = tower.width
    products = 2 * tokens * (4 * width**2 + 2 * width * tower.mlp_width)
    return tower.layers * (products + 4 * tokens**2 * width)
