"""What a tuned model can be exchanged for: forms fitted to its predictions (`replacement`)."""

import dataclasses

import numpy as np

from clipbias.explain.results.effects import ByOutcome, ImageOutcomes
from clipbias.explain.uncertainty import Estimate


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Shares of images that two models decide alike; `None` where there is no such image.

    Attributes:
      every: of all images.
      moved: of those whose decision tuning moved.
      fixed, broken: of those that tuning made right, or wrong.
    """

    every: Estimate | None
    moved: Estimate | None
    fixed: Estimate | None
    broken: Estimate | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model beside the tuned one, on the study's images.

    Attributes:
      numbers: how many it stores.
      kept: of the tuned model's gain over the frozen model, with its share, by outcome.
      difference: of its accuracy from the tuned model's, a share of images, paired; margin: the smallest loss that the
        interval rules out.
      divergence: mean KL from the tuned model in nats.
      agreement: with the tuned model.
      cosine: mean over images of that between `f_F - f_R` and `f_P - f_R`: how this model (F) and the tuned one (P)
        move the frozen model's image features (R), all of unit length, as logits read them. What texts and heads
        change is not in it. `None` where one of the two moves no image feature.
    """

    numbers: int
    kept: ByOutcome[Estimate]
    difference: Estimate
    margin: float
    divergence: Estimate
    agreement: Agreement
    cosine: Estimate | None


@dataclasses.dataclass(frozen=True)
class FittedForm:
    """One form that learned a tuned model's predictions.

    Attributes:
      words: what it is.
      fitted_divergence, held_back_divergence: mean KL from the tuned model in nats on the images that it was fitted on,
        and on held-back ones.
      comparison: with the tuned model.
      beside_retraining: by key of a retraining: its agreement on moved decisions less the retraining's, paired.
      beside_untaught: the same, less that of the form trained on labels.
      conclusion: a key of `replacement.CONCLUSIONS`; sentence: what is concluded, in words.
    """

    words: str
    fitted_divergence: float
    held_back_divergence: float
    comparison: Comparison
    beside_retraining: dict[str, Estimate]
    beside_untaught: dict[str, Estimate]
    conclusion: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class FittedReplacements:
    """What one tuned model can be exchanged for.

    Attributes:
      gain: over the frozen model, by outcome.
      fitted_images, held_back_images: how many, of training and of validation, without labels.
      moved_images: of the study, whose decision tuning moved.
      forms: by name.
      means: by form, the mean of what the model's blocks add, which nothing was fitted to.
      retrainings: by key, the method trained again on the same images, with another start and order.
      untaught: by form and key, the form's method trained on the same images' labels.
      ways: names of all these models, for the axis `K` of what follows, made by `replacement.way`.
      outcomes: of each image.
      decisions: the class that each way gives each image, uint16 `[n, K]`.
    """

    gain: ByOutcome[Estimate]
    fitted_images: int
    held_back_images: int
    moved_images: int
    forms: dict[str, FittedForm]
    means: dict[str, Comparison]
    retrainings: dict[str, Comparison]
    untaught: dict[str, dict[str, Comparison]]
    ways: tuple[str, ...]
    outcomes: ImageOutcomes
    decisions: np.ndarray
