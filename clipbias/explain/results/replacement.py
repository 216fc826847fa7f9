"""What a tuned model can be exchanged for: forms fitted to its predictions (`replacement`)."""

import dataclasses

from clipbias.explain.results.effects import ByOutcome
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
class FittedForm:
    """One form that learned a tuned model's predictions.

    Attributes:
      words: what it is; numbers: how many it stores.
      kept: of the gain over the frozen model, with its share, by outcome.
      difference: of its accuracy from the tuned model's, a share of images, paired; margin: the smallest loss that the
        interval rules out.
      fitted_divergence, held_back_divergence: mean KL from the tuned model in nats on the images that it was fitted on,
        and on held-back ones.
      divergence: the same on the study's images.
      agreement: with the tuned model.
      beside_retraining: by key of a retraining: its agreement on moved decisions less the retraining's, paired.
      beside_untaught: the same, less that of the form trained on labels.
      conclusion: a key of `replacement.CONCLUSIONS`; sentence: what is concluded, in words.
    """

    words: str
    numbers: int
    kept: ByOutcome[Estimate]
    difference: Estimate
    margin: float
    fitted_divergence: float
    held_back_divergence: float
    divergence: Estimate
    agreement: Agreement
    beside_retraining: dict[str, Estimate]
    beside_untaught: dict[str, Estimate]
    conclusion: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class FittedReplacements:
    """What one tuned model can be exchanged for.

    Attributes:
      gain: over the frozen model, by outcome.
      fitted_images, held_back_images: how many, all of them training images without labels.
      moved_images: of the study, whose decision tuning moved.
      forms: by name.
      retrainings: by key, the agreement of the method trained again on the same images, with another start and order.
      untaught: by key, that of forms trained on the same images' labels.
    """

    gain: ByOutcome[Estimate]
    fitted_images: int
    held_back_images: int
    moved_images: int
    forms: dict[str, FittedForm]
    retrainings: dict[str, Agreement]
    untaught: dict[str, Agreement]
