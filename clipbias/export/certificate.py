"""What is known of a distilled model: numbers with intervals, as JSON values and as sentences."""

import dataclasses
from typing import Any

from clipbias.explain.agreement import proven_margin
from clipbias.explain.uncertainty import Estimate

# The note of an adapter that holds the certificate, and its file in an exported folder.
NOTE = "certificate"
FILE = "certificate.json"


@dataclasses.dataclass(frozen=True)
class Fit:
    """A form that was fitted to a tuned model, and how it does on images that it was not fitted on.

    Attributes:
      form: of `training.students.FORMS`; words: what it is.
      numbers: that it stores.
      learning_rate: of its training.
      fitted_images, held_back_images: how many there are.
      fitted_divergence, divergence: mean KL in nats on the fitted images (high: the form or the steps do not suffice)
        and on held-back ones (high beside a low first: the images do not suffice).
      agreement: share of held-back images with the tuned model's decision.
    """

    form: str
    words: str
    numbers: int
    learning_rate: float
    fitted_images: int
    held_back_images: int
    fitted_divergence: float
    divergence: float
    agreement: float

    def sentence(self) -> str:
        """One line of a report."""
        return (
            f"{self.form} ({self.words}): {self.numbers:,} numbers, decides as the adapter on "
            f"{100 * self.agreement:.1f} % of {self.held_back_images:,} held-back images; KL {self.divergence:.3g} "
            f"nats, {self.fitted_divergence:.3g} on the {self.fitted_images:,} fitted ones"
        )


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A distilled model against its teacher, on images that were used nowhere else.

    Attributes:
      form, words: the form, and what it is.
      folds: whether it is a plain CLIP.
      teacher: the teacher's method.
      images: how many certify it.
      accuracy, teacher_accuracy: shares; `None` without labels.
      difference: of the accuracies, paired, with its interval; `None` without labels.
      divergence: mean KL from the teacher in nats.
      agreement: share of images with the teacher's decision.
      moved: the same on the images whose decision tuning moved; `None` where there is none.
      moved_images: how many these are.
      numbers, teacher_numbers: stored by the form and by the teacher.
      fits: of all forms that were fitted.
    """

    form: str
    words: str
    folds: bool
    teacher: str
    images: int
    accuracy: float | None
    teacher_accuracy: float | None
    difference: Estimate | None
    divergence: Estimate
    agreement: Estimate
    moved: Estimate | None
    moved_images: int
    numbers: int
    teacher_numbers: int
    fits: tuple[Fit, ...]

    @property
    def margin(self) -> float | None:
        """The smallest loss of accuracy that the interval rules out, a share; `None` without labels."""
        return None if self.difference is None else proven_margin(self.difference)

    def sentences(self) -> tuple[str, ...]:
        """A sentence each for accuracy, divergence, agreement and numbers."""
        lines = []
        if self.difference is not None and self.accuracy is not None and self.teacher_accuracy is not None:
            lines.append(
                f"On {self.images:,} test images that were used nowhere else the distilled model has "
                f"{100 * self.accuracy:.1f} % right and {self.teacher} {100 * self.teacher_accuracy:.1f} %: a paired "
                f"difference of {_points(self.difference.value)} points (95 % interval {_points(self.difference.low)} "
                f"to {_points(self.difference.high)}), which rules out a loss of more than "
                f"{100 * (self.margin or 0):.1f} points."
            )
        lines.append(
            f"Its predictions differ from those of {self.teacher} by a KL divergence of {self.divergence.value:.3g} "
            f"nats in the mean (95 % interval {self.divergence.low:.3g} to {self.divergence.high:.3g})."
        )
        agreement = f"It decides as {self.teacher} on {_percent(self.agreement)} of {self.images:,} images"
        if self.moved is not None:
            agreement += f", and on {_percent(self.moved)} of the {self.moved_images:,} whose decision tuning moved"
        lines.append(f"{agreement}.")
        cost = "images cost what they cost in plain CLIP" if self.folds else "it stays an adapter"
        lines.append(
            f"It stores {self.numbers:,} numbers, {self.words}, where {self.teacher} stores "
            f"{self.teacher_numbers:,}; {cost}."
        )
        return tuple(lines)

    def as_json(self) -> dict[str, Any]:
        """All numbers and sentences as JSON values."""
        values = dataclasses.asdict(self)
        for name in ("difference", "divergence", "agreement", "moved"):
            if values[name] is not None:
                del values[name]["share"]
        return {**values, "fits": list(values["fits"]), "margin": self.margin, "sentences": list(self.sentences())}


def _percent(share: Estimate) -> str:
    assert share.low is not None and share.high is not None, "a share of images has an interval"
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _points(share: float | None) -> str:
    assert share is not None, "a paired difference has an interval"
    return f"{100 * share:+.1f}"
