"""How students compare with their teacher: the replacements of a study (`replacement`), and a certificate."""

import dataclasses
import enum

import numpy as np

from clipbias.explain.results.effects import ByOutcome
from clipbias.explain.results.facts import Missing
from clipbias.explain.uncertainty import Estimate

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
    """What stands in a teacher's place.

    Attributes:
      kind: how it came to be; form: the form's name, or the method's.
      words: what it is.
      numbers: how many it stores.
      fitted_divergence, held_back_divergence: mean KL from the teacher in nats on the images that it was fitted on
        (high: the form or the steps do not suffice) and on held-back ones (high beside a low first: the images do
        not); `None` where nothing was fitted.
    """

    kind: Kind
    form: str
    words: str
    numbers: int
    fitted_divergence: float | None = None
    held_back_divergence: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A student beside its teacher, on images that it was not fitted on. Intervals are over these images, and seeds.

    R is the frozen model, P the teacher, F the student.

    Attributes:
      student: what it is.
      models, images, moved_images: how many teachers; images; decisions that tuning moved, `argmax z_R ≠ argmax z_P`, a
        mean over the teachers.
      divergence: mean KL `softmax z_P ‖ softmax z_F` in nats.
      agreement: share of images with the teacher's decision.
      moved, fixed, broken: the same, of images whose decision tuning moved, made right, and made wrong; `None` where
        there is no such image.
      cosine: mean over images of that between `f_F - f_R` and `f_P - f_R`, of unit-length image features. What texts
        and heads change is not in it. `None` where one of the two moves no image feature.
      accuracy: of the student; difference: from the teacher's, paired; both a share of images, `None` without labels.
      gain: over the frozen model in points and in nats, with the share of the teacher's gain; `None` without labels.
      less_ceiling: `moved` less the ceiling's, paired; `None` of what has no ceiling.
      word: what is concluded; `None` of what was not fitted.
    """

    student: Student
    models: int
    images: int
    moved_images: int
    divergence: Estimate
    agreement: Estimate
    moved: Estimate | None
    fixed: Estimate | None
    broken: Estimate | None
    cosine: Estimate | None
    accuracy: float | None = None
    difference: Estimate | None = None
    gain: ByOutcome[Estimate] | None = None
    less_ceiling: Estimate | None = None
    word: Word | None = None

    @property
    def margin(self) -> float | None:
        """The smallest loss of accuracy that the interval rules out, a share; `None` without labels."""
        if self.difference is None or self.difference.low is None:
            return None
        return max(0.0, -self.difference.low)

    @property
    def share(self) -> Estimate | None:
        """Of the teacher's gain in calibrated log-likelihood; `None` where that is not surely above 0."""
        return None if self.gain is None else self.gain.calibrated.share


@dataclasses.dataclass(frozen=True)
class ImageComparisons:
    """A teacher and its students on each of `n` images. Columns `K` are frozen model, teacher, then the students.

    Attributes:
      students: `K - 2` of them.
      decisions: the class that each gives each image, uint16 `[n, K]`.
      divergences: KL from the teacher in nats, float32 `[n, K]`.
      cosines: as of `Comparison`, float32 `[n, K]`; NaN where an image's feature does not move.
      correct: uint8 `[n, K]`; calibrated: log-likelihood of the true class in nats, float32 `[n, K]`. Both are `None`
        without labels.
    """

    students: tuple[Student, ...]
    decisions: np.ndarray
    divergences: np.ndarray
    cosines: np.ndarray
    correct: np.ndarray | None = None
    calibrated: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ModelReplacements:
    """What was fitted to one tuned model.

    Attributes:
      steps: of each fit; fitted_images, held_back_images: how many, without labels.
      images: numbers of the study's images in the split, `[n]`.
      by_image: all that follows is from this.
      no_ceiling: why the method was not fitted to itself; "" where it was.
    """

    steps: int
    fitted_images: int
    held_back_images: int
    images: np.ndarray
    by_image: ImageComparisons
    no_ceiling: str


@dataclasses.dataclass(frozen=True)
class MethodReplacements:
    """What one method can be exchanged for, over all its seeds.

    Attributes:
      name: how the method is called; models: keys of its models.
      gain: over the frozen model, by outcome.
      rows: what stands in its place.
      sentence: what is concluded of two vectors per layer, or of the first form.
    """

    name: str
    models: tuple[str, ...]
    gain: ByOutcome[Estimate]
    rows: tuple[Comparison, ...]
    sentence: str


@dataclasses.dataclass(frozen=True)
class ReplacementResults:
    """All replacements of a study: by model, and by method over its seeds."""

    models: dict[str, ModelReplacements | Missing]
    methods: tuple[MethodReplacements, ...]
