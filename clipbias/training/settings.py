"""The recipe of a training run: the paper's values are in `configs/base.py`, nowhere else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias import checks

# A schedule of more epochs than anyone trains would only fill the memory.
MOST = 1_000_000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How learnables are trained.

    Attributes:
      learning_rate: of SGD, after the warm-up.
      epochs: passes over the training images, the warm-up ones included.
      warmup_epochs: first epochs at a constant `warmup_learning_rate`.
      warmup_learning_rate: their learning rate.
      batch_size: images per step and run, over all devices.
      momentum, weight_decay: of SGD; the decay acts on the learnables only.
    """

    learning_rate: float
    epochs: int
    warmup_epochs: int
    warmup_learning_rate: float
    batch_size: int
    momentum: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            checks.whole(name, getattr(self, name), lowest=1, highest=MOST)
        checks.whole("warmup_epochs", self.warmup_epochs, highest=MOST)
        for name in ("learning_rate", "warmup_learning_rate", "weight_decay", "momentum"):
            checks.number(name, getattr(self, name), lowest=0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """Takes the fields of the same names from a configuration."""
        recipe = cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})
        # 1 and 1.0 are one recipe: what is stored beside results must not tell them apart.
        numbers: dict[str, Any] = {n: float(config[n]) for n, kind in cls.__annotations__.items() if kind is float}
        return dataclasses.replace(recipe, **numbers)

    def learning_rates(self) -> np.ndarray:
        """The learning rate of each epoch, float64 `[epochs]`.

        A constant warm-up, then epoch `e` at `lr (1 + cos(π (e - warmup_epochs) / epochs)) / 2`: per epoch, not per
        step, and a cosine over all epochs that the run ends before it reaches zero, as the compared methods' code does.
        """
        epoch = np.arange(self.epochs)
        cosine = self.learning_rate * (1 + np.cos(np.pi * (epoch - self.warmup_epochs) / self.epochs)) / 2
        return np.where(epoch < self.warmup_epochs, self.warmup_learning_rate, cosine)
