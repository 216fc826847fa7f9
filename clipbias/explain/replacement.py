"""From logits of a tuned model, of fitted forms and of retrainings to what a tuned model can be exchanged for."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipbias.explain.agreement import accuracy_difference, agreement, mean_divergence, proven_margin
from clipbias.explain.effects import KEPT, REFERENCE, TUNED, measure, summarize_replacements
from clipbias.explain.results import Agreement, ByOutcome, FittedForm, FittedReplacements
from clipbias.explain.uncertainty import Estimate, excludes

# A share of the gain above which a form can stand for a method, or mostly.
WHOLE = 0.9
HALF = 0.5
# By how much agreement on moved decisions may be below a retraining's, a share.
MARGIN = 0.05
CONCLUSIONS = {
    "replaces": "can be replaced by",
    "mostly": "can mostly be replaced by",
    "not found": "was not matched, with so many images and steps, by",
    "undecided": "may or may not be replaced by",
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a form was fitted.

    Attributes:
      words: what it is; numbers: how many it stores.
      fitted_divergence, held_back_divergence: mean KL in nats.
    """

    words: str
    numbers: int
    fitted_divergence: float
    held_back_divergence: float


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits `[n, C]` of the study's images.

    Attributes:
      frozen, tuned: of the frozen and of the tuned model.
      forms: by name.
      retrainings: by key.
      untaught: by form's name and key, of forms trained on labels.
    """

    frozen: np.ndarray
    tuned: np.ndarray
    forms: Mapping[str, np.ndarray]
    retrainings: Mapping[str, np.ndarray]
    untaught: Mapping[str, Mapping[str, np.ndarray]]


def decisions_alike(frozen: np.ndarray, tuned: np.ndarray, other: np.ndarray, labels: np.ndarray) -> Agreement:
    """How often a model decides as the tuned one, from decisions `[n]`."""
    same = tuned == other
    return Agreement(
        every=agreement(same),
        moved=agreement(same[tuned != frozen]),
        fixed=agreement(same[(tuned == labels) & (frozen != labels)]),
        broken=agreement(same[(tuned != labels) & (frozen == labels)]),
    )


def conclude(share: Estimate | None, beside_retraining: list[Estimate], beside_untaught: list[Estimate]) -> str:
    """A key of `CONCLUSIONS`. A fit is a lower bound: nothing says that a form cannot.

    Args:
      share: of the calibrated gain; `None` where the gain is not sure.
      beside_retraining: of the form's agreement on moved decisions less each retraining's.
      beside_untaught: less that of the form trained on labels.
    """
    if share is None:
        return "undecided"
    as_retraining = all(excludes(each, -MARGIN) > 0 for each in beside_retraining)
    above_untaught = all(excludes(each) > 0 for each in beside_untaught)
    compared = bool(beside_retraining and beside_untaught)
    if excludes(share, WHOLE) > 0 and compared and as_retraining and above_untaught:
        return "replaces"
    if excludes(share, HALF) > 0:
        return "mostly"
    return "not found" if excludes(share, HALF) < 0 else "undecided"


def summarize(
    label: str, logits: Logits, labels: np.ndarray, fits: Mapping[str, Fit], images: tuple[int, int]
) -> FittedReplacements:
    """What one tuned model can be exchanged for.

    Args:
      label: the model's, for sentences.
      logits: of the study's images.
      labels: `[n]`.
      fits: by form.
      images: how many were fitted on, and held back.
    """
    names = [REFERENCE, *(f"{KEPT}:{name}" for name in logits.forms), TUNED]
    stacked = np.stack([logits.frozen, *logits.forms.values(), logits.tuned], axis=1)
    summary = summarize_replacements(measure(stacked, labels), names)
    frozen, tuned = logits.frozen.argmax(-1), logits.tuned.argmax(-1)
    moved = tuned != frozen
    forms = {}
    for name, values in logits.forms.items():
        decided = values.argmax(-1)
        same = (decided == tuned)[moved]

        def beside(others: Mapping[str, np.ndarray], same: np.ndarray = same) -> dict[str, Estimate]:
            if not len(same):
                return {}
            alike = {key: (other.argmax(-1) == tuned)[moved] for key, other in others.items()}
            return {key: accuracy_difference(same, other) for key, other in alike.items()}

        retrained = beside(logits.retrainings)
        untaught = beside(logits.untaught.get(name, {}))
        kept = ByOutcome(accuracy=summary.accuracy.kept[name], calibrated=summary.calibrated.kept[name])
        difference = accuracy_difference(decided == labels, tuned == labels)
        conclusion = conclude(kept.calibrated.share, list(retrained.values()), list(untaught.values()))
        alike = decisions_alike(frozen, tuned, decided, labels)
        forms[name] = FittedForm(
            words=fits[name].words,
            numbers=fits[name].numbers,
            kept=kept,
            difference=difference,
            margin=proven_margin(difference),
            fitted_divergence=fits[name].fitted_divergence,
            held_back_divergence=fits[name].held_back_divergence,
            divergence=mean_divergence(logits.tuned, values),
            agreement=alike,
            beside_retraining=retrained,
            beside_untaught=untaught,
            conclusion=conclusion,
            sentence=_sentence(label, fits[name].words, conclusion, kept.calibrated.share, alike),
        )
    untaught_models = {key: values for by_key in logits.untaught.values() for key, values in by_key.items()}
    return FittedReplacements(
        gain=ByOutcome(accuracy=summary.accuracy.gain, calibrated=summary.calibrated.gain),
        fitted_images=images[0],
        held_back_images=images[1],
        moved_images=int(moved.sum()),
        forms=forms,
        retrainings={
            key: decisions_alike(frozen, tuned, values.argmax(-1), labels) for key, values in logits.retrainings.items()
        },
        untaught={
            key: decisions_alike(frozen, tuned, values.argmax(-1), labels) for key, values in untaught_models.items()
        },
    )


def _sentence(label: str, words: str, conclusion: str, share: Estimate | None, alike: Agreement) -> str:
    text = f"{label} {CONCLUSIONS[conclusion]} {words} fitted to its predictions"
    if share is None:
        return f"{text}: its gain in calibrated log-likelihood is not sure."
    assert share.low is not None and share.high is not None, "a share of a sure gain has an interval"
    text += f": {100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f}) of the gain in calibrated "
    text += "log-likelihood"
    return f"{text}, {100 * alike.moved.value:.0f} % of the moved decisions." if alike.moved else f"{text}."
