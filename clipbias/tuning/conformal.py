"""Prediction sets and rejection ("none of these"), from a model's scores of calibration images.

Split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019): a set holds the classes whose `1 - p` is at most the
`⌈(n + 1) · coverage⌉`-th smallest `1 - p` of the true classes of `n` calibration images. The set of an exchangeable
image holds its true class with at least this probability, whatever the model. An image is rejected if its score is
below the threshold that a share of the calibration images reaches. Scores: the largest logit (Hendrycks et al. 2022),
the largest probability of the unscaled cosines (MCM, Ming et al. 2022), and the negative energy, the log-sum-exp of the
logits (Liu et al. 2020).
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from scipy.special import log_softmax, logsumexp

from clipbias.checks import Choices, Range, check_fields
from clipbias.data.held_out import FEWEST_TO_CALIBRATE
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted
from clipbias.settings import setting
from clipbias.terminal import printable

SCORES = ("max_logit", "mcm", "energy")
# The word for an image that is rejected.
NONE_OF_THESE = "none of these"
NOT_CALIBRATED = (
    f"there are no scores of calibration images for these classes, which take {FEWEST_TO_CALIBRATE} labelled images "
    "that neither train nor select a setting; tune with (more) validation images (--config.calibrate), or take "
    "model.calibrate(images, labels)"
)
# Bounds of a calibration's arrays. Most models have a factor of the cosines of 100, far inside the last bounds.
_BOUNDS = {
    "nonconformity": Range(0, 1),
    "max_logit": Range(-sys.float_info.max, sys.float_info.max),
    "mcm": Range(0, 1),
    "energy": Range(-sys.float_info.max, sys.float_info.max),
    "scale": Range(1e-6, 1e6),
}
# Shares times numbers of images are whole numbers up to this rounding error.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Prediction sets and rejection of a calibrated model."""

    coverage: Annotated[float, Range(0.01, 0.9999)] = setting(
        0.9, "Share of images whose prediction set holds the true class; see docs/answers.md."
    )
    rejection: Annotated[str, Choices(SCORES)] = setting(
        "max_logit", 'Score that rejects an image: the largest logit, "mcm" or "energy".'
    )
    accepted: Annotated[float, Range(0.01, 1)] = setting(0.95, "Share of calibration images that is not rejected.")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class AnswerRule:
    """Thresholds of prediction sets and rejection.

    `nonconformity` is the largest `1 - p` of a class in a set, `lowest` the lowest score of an image that is not
    rejected, `scale` the factor of the cosines, and `images` the number of calibration images.
    """

    options: AnswerOptions
    nonconformity: float
    lowest: float
    scale: float
    images: int

    def sets(self, logits: np.ndarray) -> np.ndarray:
        """Members of each image's set, bool `[B, C]`, from logits `[B, C]`; an empty set for NaN."""
        return nonconformity(logits) <= self.nonconformity

    def names(self, logits: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, ...]]:
        return [
            tuple(class_names[label] for label in np.argsort(-row, kind="stable") if members[label])
            for row, members in zip(logits, self.sets(logits), strict=True)
        ]

    def rejected(self, logits: np.ndarray) -> np.ndarray:
        """Rejected images, bool `[B]`; false for NaN."""
        return scores_of(logits, self.scale)[self.options.rejection] < self.lowest

    @property
    def caution(self) -> str:
        """Warning that rejection means little with so few calibration images; empty with enough images."""
        # Among n + 1 exchangeable images, a new one has the lowest score with probability 1 / (n + 1): no threshold
        # among the scores of n images rejects fewer.
        fewest = _fewest_images(self.options.accepted) if self.options.accepted < 1 else 0
        if self.images >= fewest:
            return ""
        return (
            f'"{NONE_OF_THESE}" means little with {counted(self.images, "calibration image")}: a picture is rejected '
            f"only if its score is below all of theirs, and to accept {100 * self.options.accepted:g} % of such "
            f"pictures takes {fewest:,}, so calibrate with more images"
        )

    def words(self, names: Sequence[str], rejected: bool) -> str:
        members = ", ".join(map(printable, names))
        return NONE_OF_THESE if rejected else f"{100 * self.options.coverage:g} % set: {members or 'empty'}"


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A model's scores of `n` images that neither trained it nor selected a setting, each float64 `[n]`.

    `nonconformity` is `1 - p` of the true class; the others are those of the head of this file, and `scale`, `[]`, is
    the factor of the cosines in the logits, by which `mcm` divides them.
    """

    nonconformity: np.ndarray
    max_logit: np.ndarray
    mcm: np.ndarray
    energy: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(getattr(self, name)) for name in ("nonconformity", *SCORES)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0] or np.shape(self.scale):
            raise ClipbiasError(f"the scores of calibration images have shapes {shapes}; they must be alike, [n].")
        for name, bounds in _BOUNDS.items():
            values = np.asarray(getattr(self, name))
            # Written as "not all inside", since NaN is inside no bounds. Rounding may move a score just outside.
            if not ((values >= bounds.lowest - _ROUNDING) & (values <= bounds.highest + _ROUNDING)).all():
                raise ClipbiasError(
                    f"the {name} of calibration images goes from {values.min():g} to {values.max():g}; it must lie "
                    f"between {bounds.lowest:g} and {bounds.highest:g}; calibrate the model again."
                )

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, scale: float) -> "Calibration":
        """The scores of images with logits `[n, C]` and labels `[n]`."""
        label_scores = nonconformity(logits)[np.arange(len(labels)), labels]
        return cls(label_scores, **scores_of(logits, scale), scale=np.asarray(scale, np.float64))

    @classmethod
    def read(cls, arrays: object) -> "Calibration":
        # From a file, which may lack an array, or have an unknown one.
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(arrays, Mapping) or arrays.keys() != set(names):
            raise ClipbiasError(f"its scores of calibration images are not {', '.join(names)}.")
        return cls(**arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return len(self.nonconformity)

    def rule(self, options: AnswerOptions) -> AnswerRule:
        """Thresholds for these options. Raises `ClipbiasError` for a coverage that needs more images."""
        # The (n + 1) makes the guarantee hold for finite n: the new image counts as one of n + 1 exchangeable ones.
        images = len(self)
        place = math.ceil((images + 1) * options.coverage - _ROUNDING)
        if place > images:
            fewest = counted(_fewest_images(options.coverage), "calibration image")
            raise ClipbiasError(
                f"a coverage of {100 * options.coverage:g} % takes {fewest}, and this model has {images:,}, enough for "
                f"{100 * images / (images + 1):.4g} %; lower the coverage, or calibrate with more images."
            )
        return AnswerRule(
            options,
            nonconformity=float(np.sort(self.nonconformity)[place - 1]),
            lowest=lowest_accepted(getattr(self, options.rejection), options.accepted),
            scale=float(self.scale),
            images=images,
        )


def _fewest_images(share: float) -> int:
    """The smallest `n` with `n / (n + 1) ≥ share`: no threshold among fewer scores keeps the share."""
    return math.ceil(share / (1 - share) - _ROUNDING)


def nonconformity(logits: np.ndarray) -> np.ndarray:
    """`1 - p` of every class, float64 `[B, C]`, of logits `[B, C]`."""
    # `-expm1(log p)`: `1 - exp(log p)` would round small values to 0, and thresholds are made of these.
    return -np.expm1(log_softmax(np.asarray(logits, np.float64), axis=-1))


def scores_of(logits: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """The scores of `SCORES`, float64 `[B]`: the higher, the more an image is one of the classes."""
    logits = np.asarray(logits, np.float64)
    return {
        "max_logit": logits.max(-1),
        "mcm": np.exp(log_softmax(logits / scale, axis=-1).max(-1)),
        "energy": logsumexp(logits, axis=-1),
    }


def lowest_accepted(scores: np.ndarray, accepted: float) -> float:
    """The highest threshold that a share `accepted` of the scores `[n]` reaches."""
    ordered = np.sort(scores)[::-1]
    return float(ordered[math.ceil(accepted * len(ordered) - _ROUNDING) - 1])


def measure(rule: AnswerRule, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measures sets and rejections on images with logits `[n, C]` and labels `[n]`.

    Returns:
      In percent `coverage` and `target_coverage`, the share of `empty` sets and of images that are `rejected`; the mean
      number of classes in a set, `mean_size`; and the numbers of `images` and `calibration_images`.
    """
    sets = rule.sets(logits)
    return {
        "images": len(labels),
        "calibration_images": rule.images,
        "target_coverage": 100 * rule.options.coverage,
        "coverage": 100 * float(sets[np.arange(len(labels)), labels].mean()),
        "mean_size": float(sets.sum(-1).mean()),
        "empty": 100 * float((~sets.any(-1)).mean()),
        "rejected": 100 * float(rule.rejected(logits).mean()),
    }


def measured_words(measured: Mapping[str, float]) -> str:
    images = counted(int(measured["calibration_images"]), "calibration image")
    return (
        f"prediction sets for {measured['target_coverage']:g} % from {images}: {measured['coverage']:.1f} % hold the "
        f"true class; {measured['mean_size']:.2f} classes in the mean; {measured['empty']:.1f} % are empty; "
        f"{measured['rejected']:.1f} % of the images are rejected"
    )
