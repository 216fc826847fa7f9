"""The recipe of a run and what the cells of a grid share; the paper's values are in `configs/`, nowhere else."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from clipbias.checks import LARGEST, Choices, Range, check_fields, check_texts, shown
from clipbias.clip.precision import DTYPES
from clipbias.data import protocols
from clipbias.data.pipeline import ON_ERROR
from clipbias.errors import ClipbiasError

# Of `remat`: the fastest way that fits the device's memory.
AUTO = "auto"

# A schedule of more epochs than anyone trains would only fill the memory.
MOST = 1_000_000

_Count = Annotated[int, Range(1, MOST)]
_Number = Annotated[float, Range(0)]


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

    learning_rate: _Number
    epochs: _Count
    warmup_epochs: Annotated[int, Range(0, MOST)]
    warmup_learning_rate: _Number
    batch_size: _Count
    momentum: _Number
    weight_decay: _Number

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """Takes the fields of the same names from a configuration."""
        recipe = cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})
        # 1 and 1.0 are one recipe: what is stored beside results must not tell them apart.
        numbers: dict[str, Any] = {n: float(config[n]) for n, kind in cls.__annotations__.items() if kind is _Number}
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
    dtype: Annotated[str, Choices(DTYPES)]
    eval_batch_size: Annotated[int, Range(1, LARGEST)]
    checkpoint_seconds: _Number
    on_image_error: Annotated[str, Choices(ON_ERROR)]
    protocol: Annotated[str, Choices(tuple(protocols.PROTOCOLS))] = "few_shot"
    targets: tuple[str, ...] | None = None
    remat: str = AUTO
    class_chunks: int = 0
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts("targets", self.targets or ())
        check_fields(self)
        given: Any = self.method_options  # whose insides `check_fields` does not see
        if not isinstance(given, Mapping):
            raise ClipbiasError(f"method_options is {shown(given)}; give options by method name.")
        for name, options in given.items():
            if not isinstance(options, Mapping):
                raise ClipbiasError(f"the options of {name!r} are {shown(options)}; give them by name.")
