"""The causal test and the verdict that it allows."""

import dataclasses
import enum
from typing import Generic, TypeVar

import numpy as np

from clipbias.explain.uncertainty import Estimate

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ByOutcome(Generic[T]):
    """The same in both outcomes: accuracy in points, calibrated log-likelihood in nats, by which labels are decided."""

    accuracy: T
    calibrated: T

    def __getitem__(self, outcome: str) -> T:
        return {"accuracy": self.accuracy, "calibrated": self.calibrated}[outcome]

    def items(self) -> tuple[tuple[str, T], ...]:
        return (("accuracy", self.accuracy), ("calibrated", self.calibrated))


@dataclasses.dataclass(frozen=True)
class ImageOutcomes:
    """What became of each of `n` images in `K` ways to classify, `[n, K]`.

    Attributes:
      images: numbers of the examples in the split, `[n]`.
      correct: uint8.
      calibrated: log-likelihood of the true class in nats, each way's logits divided by a temperature of its own that
        was fitted on other images.
    """

    images: np.ndarray
    correct: np.ndarray
    calibrated: np.ndarray


@dataclasses.dataclass(frozen=True)
class Levels:
    """What a tuned run adds to a tower's tokens, against nothing, at its own attention, in one outcome (`causal`).

    Attributes:
      all: all of it, with its share of the gain; of texts, whose images are the frozen model's, of the text's gain.
      kind: the mean by layer and kind of token over training images, or over classes; with its share of all.
      position: the mean by layer and position, likewise; `None` of texts.
      other: what it adds for another image, likewise.
      exchange: an image's own less another image's: what exchanging it between images costs; with its share of all.
    """

    all: Estimate
    kind: Estimate
    position: Estimate | None
    other: Estimate | None
    exchange: Estimate | None


@dataclasses.dataclass(frozen=True)
class CausalNumbers:
    """What a gain is made of in one outcome; all but the first two with their shares of the gain.

    Attributes:
      reference: the outcome of the frozen model.
      gain: of the tuned model over it.
      attention: the corner PR, attention alone; `None` where the two runs are not mixed, as for heads.
      tokens: the corner RP, what is added to tokens, attention frozen.
      towers: by name, what each tower gains alone, where a method changes both.
      image, text: what is added to image and to text tokens, where that was measured.
    """

    reference: Estimate
    gain: Estimate
    attention: Estimate | None
    tokens: Estimate | None
    towers: dict[str, Estimate]
    image: Levels | None
    text: Levels | None


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model.

    Attributes:
      ways: names of the `K` ways to classify, members of `causal_section.Way`; three for three other images.
      outcomes: of each image.
      why: why the two runs are not mixed, or "".
      why_no_levels: by tower, why what is added there was not measured.
    """

    ways: tuple[str, ...]
    outcomes: ImageOutcomes
    why: str
    why_no_levels: dict[str, str]


class Where(enum.Enum):
    """Where a method acts, of the share of the gain that attention alone has."""

    ATTENTION = "attention"
    NOT_ATTENTION = "not attention"
    OUTSIDE = "outside"
    UNDECIDED = "undecided"
    NO_GAIN = "no gain"


class What(enum.Enum):
    """What a method adds to image tokens, of what exchanging it between images costs."""

    NOTHING = "nothing"
    SAME = "the same for every image"
    DEPENDS = "depends on the image"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The verdict on a method; `what` is `None` where there is no gain."""

    where: Where
    what: What | None


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method: its only adapter, or all its seeds together, over seeds and images crossed.

    Attributes:
      label: its name, with the number of seeds where there are several.
      name: the same without that number.
      method: as the registry names it.
      models: keys of its adapters.
      accuracy: in percent, a mean over seeds.
      images: how many were tested.
      numbers: of the causal test; `None` where it was not run.
      labels: `None` where it was not run, or on too few images.
      sentence: the verdict in words.
    """

    label: str
    name: str
    method: str
    models: tuple[str, ...]
    accuracy: float
    images: int
    numbers: ByOutcome[CausalNumbers] | None
    labels: Labels | None
    sentence: str


@dataclasses.dataclass(frozen=True)
class CausalTests:
    """The causal test of every model by key, and its numbers by the keys of a method's models, joined by a space."""

    models: dict[str, CausalTest]
    numbers: dict[str, ByOutcome[CausalNumbers]]

    def of(self, keys: tuple[str, ...]) -> ByOutcome[CausalNumbers] | None:
        """The numbers of one model, or of all seeds of a method."""
        return self.numbers.get(" ".join(keys))


@dataclasses.dataclass(frozen=True)
class Replacements:
    """What stands in a method's place keeps of a gain, in one outcome; by name."""

    gain: Estimate
    kept: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class EquivalentBias:
    """The mean of what a method's blocks add in one tower, in its two forms, float32.

    Attributes:
      vector: `[L, D]`, over all input tokens.
      kind: `[L, 2, D]`: of the pooled token (`[cls]`, EOS), then of all other input tokens. `[L, 1, D]` where a pooling
        head reads all tokens.
    """

    vector: np.ndarray
    kind: np.ndarray
