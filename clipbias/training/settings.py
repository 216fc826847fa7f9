"""The recipe of a run and what the cells of a grid share; the paper's values are in `configs/`, nowhere else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.checks import check_choice, check_int, check_number, check_texts, shown
from clipbias.clip.precision import DTYPES
from clipbias.data import protocols
from clipbias.data.pipeline import ON_ERROR
from clipbias.errors import ClipbiasError

# Of `remat`: the fastest way that fits the device's memory.
AUTO = "auto"

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
            check_int(name, getattr(self, name), lowest=1, highest=MOST)
        check_int("warmup_epochs", self.warmup_epochs, highest=MOST)
        for name in ("learning_rate", "warmup_learning_rate", "weight_decay", "momentum"):
            check_number(name, getattr(self, name), lowest=0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """Takes the fields of the same names from a configuration."""
        recipe = cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})
        # 1 and 1.0 are one recipe: what is stored beside results must not tell them apart.
        numbers: dict[str, Any] = {n: float(config[n]) for n, kind in cls.__annotations__.items() if kind is float}
        return dataclasses.replace(recipe, **numbers)

    def at(self, learning_rate: float | None) -> "Recipe":
        """The same at another learning rate; `None` keeps it."""
        return self if learning_rate is None else dataclasses.replace(self, learning_rate=learning_rate)

    def learning_rates(self) -> np.ndarray:
        """The learning rate of each epoch, float64 `[epochs]`.

        A constant warm-up, then epoch `e` at `lr (1 + cos(π (e - warmup_epochs) / epochs)) / 2`: per epoch, not per
        step, and a cosine over all epochs that the run ends before it reaches zero, as the compared methods' code does.
        """
        epoch = np.arange(self.epochs)
        cosine = self.learning_rate * (1 + np.cos(np.pi * (epoch - self.warmup_epochs) / self.epochs)) / 2
        return np.where(epoch < self.warmup_epochs, self.warmup_learning_rate, cosine)


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """What all cells of a grid have in common besides the recipe.

    Attributes:
      method_options: options by method name.
      dtype: compute type.
      eval_batch_size: images per evaluation step.
      checkpoint_seconds: least time between two checkpoints of a pack.
      on_image_error: "raise" or "skip" images that cannot be read.
      protocol: a name of `data.protocols.PROTOCOLS`.
      targets: datasets that a protocol evaluates on besides; `None` takes the literature's.
      remat, class_chunks: how a step saves memory, see `training.plan`.
      inputs: what datasets are read with besides their names, such as a template: numbers depend on it.
    """

    method_options: Mapping[str, Mapping[str, Any]]
    dtype: str
    eval_batch_size: int
    checkpoint_seconds: float
    on_image_error: str
    protocol: str = "few_shot"
    targets: tuple[str, ...] | None = None
    remat: str = AUTO
    class_chunks: int = 0
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_int("eval_batch_size", self.eval_batch_size, lowest=1)
        check_number("checkpoint_seconds", self.checkpoint_seconds, lowest=0)
        check_choice("on_image_error", self.on_image_error, ON_ERROR)
        check_choice("protocol", self.protocol, tuple(protocols.PROTOCOLS))
        check_texts("targets", () if self.targets is None else self.targets)
        for name, options in self._options().items():
            if not isinstance(options, Mapping):
                raise ClipbiasError(f"the options of {name!r} are {shown(options)}; give them by name.")

    def _options(self) -> Mapping[str, Any]:
        if not isinstance(self.method_options, Mapping):
            raise ClipbiasError(f"method_options is {shown(self.method_options)}; give options by method name.")
        return self.method_options
