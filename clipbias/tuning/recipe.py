"""Training recipe: optimiser, schedule, batches."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import optax

from clipbias.checks import Choices, Range, check_fields
from clipbias.settings import fields_of, setting

# A schedule of more epochs than anyone trains would only fill the memory.
MOST = 1_000_000

# Default epochs, and the least number of steps: ten epochs are 300 steps of the paper's smallest training set, but ten
# steps of thirty pictures.
EPOCHS = 10
STEPS = 300

# Compared learning rates: the recipe's and three larger ones, each so many times the rate before. A step of SGD is as
# long as the gradient, which differs by orders of magnitude between models; a step of Adam is not.
CANDIDATES = 4
FACTOR_OF_SGD = 8.0
FACTOR_OF_ADAM = 4.0
# Rates are compared after a third of the steps.
SHORTER = 3

# The project's recipe, or that of a method's authors.
COMMON = "common"
AUTHORS = "authors"
RecipeName = Annotated[str, Choices((COMMON, AUTHORS))]

_Count = Annotated[int, Range(1, MOST)]
# Range of float32.
_Number = Annotated[float, Range(0, 3e38)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of a training. Default: the paper's.

    The fields up to `weight_decay` are settings. The others serve recipes of some methods' authors.

    Attributes:
      optimizer: "sgd", "adam" (the decay is added to the gradient) or "adamw" (the decay is apart), as torch has them.
      epsilon: of Adam, added to the root.
      schedule: "epochs" for a rate per epoch, see `learning_rates`; "steps" for a cosine from step to step, `η + (lr -
        η)(1 + cos(π k / K)) / 2` for k = 0 … K - 1, without warm-up; "warmed_steps" for that cosine after `W` steps of
        `lr (k + 1) / W`, those of the warm-up epochs.
      final_learning_rate: η of that cosine.
      steps: steps in all, whatever the epochs. Default: the epochs.
      keep_last: whether an epoch ends with its incomplete batch.
      crop: smallest share of an image that a training crop covers.
      augment: whether images are cropped and flipped at random, or prepared as they are evaluated.
    """

    learning_rate: _Number = setting(
        0.0025, "Learning rate of the first epoch after the warm-up; it falls from there along a cosine."
    )
    epochs: _Count | None = setting(
        None,
        "Passes over the training images, those of the warm-up among them; None for 10, or as many as make 300 steps.",
    )
    warmup_epochs: Annotated[int, Range(0, MOST)] = setting(
        1, "Epochs at the start whose learning rate is constant; 0 if no other epoch would follow."
    )
    warmup_learning_rate: _Number = setting(1e-5, "Learning rate of the warm-up's epochs.")
    batch_size: _Count = setting(32, "Training images per step of each run, over all devices.")
    momentum: _Number = setting(0.9, "Momentum of SGD.")
    weight_decay: _Number = setting(5e-4, "Weight decay, of learnables alone.")
    optimizer: Annotated[str, Choices(("sgd", "adam", "adamw"))] = "sgd"
    epsilon: _Number = 1e-8
    schedule: Annotated[str, Choices(("epochs", "steps", "warmed_steps"))] = "epochs"
    final_learning_rate: _Number = 0.0
    steps: _Count | None = None
    keep_last: bool = False
    crop: Annotated[float, Range(0, 1)] = 0.08
    augment: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def facts(self) -> dict[str, Any]:
        """The settings, and the other fields that differ from the common recipe, as JSON values."""
        return {name: getattr(self, name) for name in fields_of(Recipe)} | self.differences(Recipe())

    def differences(self, common: "Recipe") -> dict[str, Any]:
        """The fields that differ from another recipe, as JSON values."""
        return {name: value for name, value in vars(self).items() if value != getattr(common, name)}

    def with_learning_rate(self, learning_rate: float | None) -> "Recipe":
        return self if learning_rate is None else dataclasses.replace(self, learning_rate=learning_rate)

    def with_epochs(self, examples: int) -> "Recipe":
        return self if self.epochs else dataclasses.replace(self, epochs=self.total_epochs(examples))

    def candidates(self) -> tuple[float, ...]:
        """Learning rates to compare, from the recipe's own on."""
        factor = FACTOR_OF_SGD if self.optimizer == "sgd" else FACTOR_OF_ADAM
        return tuple(self.learning_rate * factor**power for power in range(CANDIDATES))

    def shortened(self, examples: int) -> "Recipe":
        # A third of the steps and of the warm-up. The schedule shrinks with them, so that rates are compared at the end
        # of a cosine and not in its middle.
        steps = max(1, self.total_steps(examples) // SHORTER)
        return dataclasses.replace(self, epochs=None, steps=steps, warmup_epochs=self.warmup_epochs // SHORTER)

    def steps_per_epoch(self, examples: int) -> int:
        """Batches of an epoch. The incomplete last one is dropped, unless it is the only one or `keep_last` is set."""
        # Dropped as in CoOp's code: an image that is left out comes in another epoch, whose order differs.
        return -(-examples // self.batch_size) if self.keep_last else max(1, examples // self.batch_size)

    def total_steps(self, examples: int) -> int:
        per_epoch = self.steps_per_epoch(examples)
        # Ten epochs of a few pictures would be a handful of steps: at least 300, in whole epochs.
        return self.steps or (self.epochs or max(EPOCHS, -(-STEPS // per_epoch))) * per_epoch

    def total_epochs(self, examples: int) -> int:
        """Epochs of a run, the last of which may be cut short."""
        return -(-self.total_steps(examples) // self.steps_per_epoch(examples))

    def learning_rates(self) -> np.ndarray:
        """The learning rate of each epoch, float64 `[epochs]`, where their number is given.

        A constant warm-up, then epoch `e` at `lr (1 + cos(π (e - warmup_epochs) / epochs)) / 2`: the run ends before
        the cosine reaches zero, as in the compared methods' code. A warm-up as long as the training is left out.
        """
        assert self.epochs is not None, "the number of epochs is that of a training set: see `with_epochs`"
        epoch = np.arange(self.epochs)
        warmup = self.warmup_epochs if self.warmup_epochs < self.epochs else 0
        # The period is the whole training, `/ epochs`, and starts behind the warm-up: torch's schedulers in CoOp's
        # code.
        cosine = self.learning_rate * (1 + np.cos(np.pi * (epoch - warmup) / self.epochs)) / 2
        return np.where(epoch < warmup, self.warmup_learning_rate, cosine)

    def step_rates(self, examples: int) -> np.ndarray:
        """The learning rate of each step of a run with so many training images, float64 `[total_steps]`."""
        total = self.total_steps(examples)
        if self.schedule != "epochs":
            # Rates by step: the cosine starts at the step behind the warm-up and would reach its end one step after the
            # last.
            warm = 0 if self.schedule == "steps" else min(total, self.warmup_epochs * self.steps_per_epoch(examples))
            rise = (1 + np.cos(np.pi * np.arange(total - warm) / max(total - warm, 1))) / 2
            cosine = self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * rise
            return np.concatenate([self.learning_rate * np.arange(1, warm + 1) / max(warm, 1), cosine])
        whole = dataclasses.replace(self, epochs=self.total_epochs(examples))
        return np.repeat(whole.learning_rates(), self.steps_per_epoch(examples))[:total]

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser without the learning rate, as torch computes it: a step is `p -= lr · direction`."""
        # SGD and Adam add the decay to the gradient, before momentum; AdamW adds it to the direction, behind Adam's
        # scale.
        decay = optax.add_decayed_weights(self.weight_decay)
        if self.optimizer == "sgd":  # `g += wd · p; v = m v + g`
            return optax.chain(decay, optax.trace(self.momentum))
        adam = optax.scale_by_adam(0.9, 0.999, self.epsilon)
        return optax.chain(decay, adam) if self.optimizer == "adam" else optax.chain(adam, decay)
