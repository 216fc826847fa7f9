"""Records of the causal test and of the verdict that it allows, and of how students compare with their teacher.

Letters of shapes are those of `results`.
"""

import dataclasses
import enum
from typing import Generic, TypeVar

import numpy as np

from clipbias.explain.uncertainty import Estimate

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ByOutcome(Generic[_T]):
    """The same in both outcomes: accuracy in points, log-likelihood in nats, by which labels are decided."""

    accuracy: _T
    log_likelihood: _T

    def __getitem__(self, outcome: str) -> _T:
        return {"accuracy": self.accuracy, "log_likelihood": self.log_likelihood}[outcome]

    def items(self) -> tuple[tuple[str, _T], ...]:
        return (("accuracy", self.accuracy), ("log_likelihood", self.log_likelihood))


@dataclasses.dataclass(frozen=True)
class ImageOutcomes:
    """What became of each of `n` images in `K` ways to classify, `[n, K]`."""

    images: np.ndarray  # numbers of the examples in the split, `[n]`
    correct: np.ndarray  # uint8
    # Log-likelihood of the true class in nats, each way's logits divided by a temperature of its own that was fitted on
    # other images.
    log_likelihood: np.ndarray


@dataclasses.dataclass(frozen=True)
class Levels:
    """What a tuned run adds to a tower's tokens, against nothing, at its own attention, in one outcome (`causal`)."""

    # All of it, with its share of the gain; of texts, whose images are the frozen model's, of the text's gain.
    all: Estimate
    kind: Estimate  # the mean by layer and kind of token over training images, or over classes; with its share of all
    position: Estimate | None  # the mean by layer and position, likewise; `None` of texts
    other: Estimate | None  # what it adds for another image, likewise
    # An image's own less another image's: what exchanging it between images costs; with its share of all.
    exchange: Estimate | None


@dataclasses.dataclass(frozen=True)
class CausalNumbers:
    """What a gain is made of in one outcome; all but the first two with their shares of the gain."""

    reference: Estimate  # the outcome of the frozen model
    gain: Estimate  # of the tuned model over it
    attention: Estimate | None  # the corner PR, attention alone; `None` where the two runs are not mixed, as for heads
    tokens: Estimate | None  # the corner RP, what is added to tokens, attention frozen
    towers: dict[str, Estimate]  # by name, what each tower gains alone, where a method changes both
    # image, text: what is added to image and to text tokens, where that was measured.
    image: Levels | None
    text: Levels | None


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model."""

    # Names of the `K` ways to classify, members of `causal_section.Way`; three for three other images.
    ways: tuple[str, ...]
    outcomes: ImageOutcomes  # of each image
    why: str  # why the two runs are not mixed, or ""
    why_no_levels: dict[str, str]  # by tower, why what is added there was not measured


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
    """One method: its only adapter, or all its seeds together, over seeds and images crossed."""

    label: str  # its name, with the number of seeds where there are several
    name: str  # the same without that number
    method: str  # as the registry names it
    models: tuple[str, ...]  # keys of its adapters
    accuracy: float  # in percent, a mean over seeds
    images: int  # how many were tested
    numbers: ByOutcome[CausalNumbers] | None  # of the causal test; `None` where it was not run
    labels: Labels | None  # `None` where it was not run, or on too few images
    sentence: str  # the verdict in words


@dataclasses.dataclass(frozen=True)
class CausalTests:
    """The causal test of every model by key, and its numbers by the keys of a method's models, joined by a space."""

    models: dict[str, CausalTest]
    numbers: dict[str, ByOutcome[CausalNumbers]]

    def of(self, keys: tuple[str, ...]) -> ByOutcome[CausalNumbers] | None:
        """The numbers of one model, or of all seeds of a method."""
        return self.numbers.get(" ".join(keys))


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


# The form that sentences are about: two vectors per layer.
PLAIN = "kind"


class Kind(enum.StrEnum):
    """What stands in a teacher's place."""

    FITTED = "fitted"  # a form that learned the teacher's outputs
    CEILING = "ceiling"  # the teacher's own method that did, from another start
    MEAN = "mean"  # the mean of what the teacher's blocks add; nothing was fitted
    LABELS = "on labels"  # the form's method, trained on labels
    RETRAINED = "retrained"  # the teacher's method, trained again on the same labelled images


class Word(enum.StrEnum):
    """What is concluded of a form that was fitted to a teacher (`explain.replacement.conclude`)."""

    REPLACES = "replaces"
    GAIN = "has the gain of"
    MOST = "has most of the gain of"
    NOT_MATCHED = "not matched with so many images and steps"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Student:
    """What stands in a teacher's place."""

    kind: Kind  # how it came to be
    form: str  # the form's name, or the method's
    words: str  # what it is
    numbers: int  # how many it stores
    # fitted_divergence, held_back_divergence: mean KL from the teacher in nats on the images that it was fitted on
    # (high: the form or the steps do not suffice) and on held-back ones (high beside a low first: the images do not);
    # `None` where nothing was fitted.
    fitted_divergence: float | None = None
    held_back_divergence: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A student beside its teacher, on images that it was not fitted on. Intervals are over these images, and seeds.

    R is the frozen model, P the teacher, F the student.
    """

    student: Student  # what it is
    # models, images, moved_images: how many teachers; images; decisions that tuning moved, `argmax z_R ≠ argmax z_P`, a
    # mean over the teachers.
    models: int
    images: int
    moved_images: int
    divergence: Estimate  # mean KL `softmax z_P ‖ softmax z_F` in nats
    agreement: Estimate  # share of images with the teacher's decision
    # moved, fixed, broken: the same, of images whose decision tuning moved, made right, and made wrong; `None` where
    # there is no such image.
    moved: Estimate | None
    fixed: Estimate | None
    broken: Estimate | None
    # Mean over images of that between `f_F - f_R` and `f_P - f_R`, of unit-length image features. What texts and heads
    # change is not in it. `None` where one of the two moves no image feature.
    cosine: Estimate | None
    accuracy: float | None = None  # of the student
    difference: Estimate | None = None  # from the teacher's, paired; both a share of images, `None` without labels
    # Over the frozen model in points and in nats, with the share of the teacher's gain; `None` without labels.
    gain: ByOutcome[Estimate] | None = None
    less_ceiling: Estimate | None = None  # `moved` less the ceiling's, paired; `None` of what has no ceiling
    word: Word | None = None  # what is concluded; `None` of what was not fitted

    @property
    def margin(self) -> float | None:
        """The smallest loss of accuracy that the interval rules out, a share; `None` without labels."""
        if self.difference is None or self.difference.low is None:
            return None
        return max(0.0, -self.difference.low)

    @property
    def share(self) -> Estimate | None:
        """Of the teacher's gain in log-likelihood; `None` where that is not surely above 0."""
        return None if self.gain is None else self.gain.log_likelihood.share


@dataclasses.dataclass(frozen=True)
class ImageComparisons:
    """A teacher and its students on each of `n` images. Columns `K` are frozen model, teacher, then the students."""

    students: tuple[Student, ...]  # `K - 2` of them
    decisions: np.ndarray  # the class that each gives each image, uint16 `[n, K]`
    divergences: np.ndarray  # KL from the teacher in nats, float32 `[n, K]`
    cosines: np.ndarray  # as of `Comparison`, float32 `[n, K]`; NaN where an image's feature does not move
    correct: np.ndarray | None = None  # uint8 `[n, K]`
    # Log-likelihood of the true class in nats, float32 `[n, K]`. Both are `None` without labels.
    log_likelihood: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ModelReplacements:
    """What was fitted to one tuned model."""

    steps: int  # of each fit
    # fitted_images, held_back_images: how many, without labels.
    fitted_images: int
    held_back_images: int
    images: np.ndarray  # numbers of the study's images in the split, `[n]`
    by_image: ImageComparisons  # all that follows is from this
    no_ceiling: str  # why the method was not fitted to itself; "" where it was


@dataclasses.dataclass(frozen=True)
class MethodReplacements:
    """What one method can be exchanged for, over all its seeds."""

    name: str  # how the method is called
    models: tuple[str, ...]  # keys of its models
    gain: ByOutcome[Estimate]  # over the frozen model, by outcome
    rows: tuple[Comparison, ...]  # what stands in its place
    sentence: str  # what is concluded of two vectors per layer, or of the first form
