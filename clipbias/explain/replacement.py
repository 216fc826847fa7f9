"""From logits of a tuned model, of fitted forms and of retrainings to what a tuned model can be exchanged for."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipbias.explain.agreement import accuracy_difference, agreement, mean_cosine, mean_divergence, proven_margin
from clipbias.explain.effects import KEPT, REFERENCE, TUNED, measure, summarize_replacements
from clipbias.explain.results import Agreement, ByOutcome, Comparison, FittedForm, FittedReplacements
from clipbias.explain.uncertainty import Estimate, excludes

# A share of the gain above which a form can stand for a method, or mostly.
WHOLE = 0.9
HALF = 0.5
# By how much agreement on moved decisions may be below a retraining's, a share.
MARGIN = 0.05
# Kinds of models beside the tuned one.
FITTED = "fitted"
MEAN = "mean"
RETRAINED = "retrained"
UNTAUGHT = "untaught"
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
      words: what it is.
      fitted_divergence, held_back_divergence: mean KL in nats.
    """

    words: str
    fitted_divergence: float
    held_back_divergence: float


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model makes of the study's images.

    Attributes:
      logits: `[n, C]`.
      features: of the images, of unit length, `[n, d]`.
      numbers: how many the model stores.
    """

    logits: np.ndarray
    features: np.ndarray
    numbers: int

    @property
    def decisions(self) -> np.ndarray:
        """The class that each image gets, `[n]`."""
        return self.logits.argmax(-1)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The frozen and the tuned model, and what stands beside the tuned one.

    Attributes:
      fitted: forms that learned the tuned model's predictions, by name.
      means: the mean of what its blocks add, by form.
      retrainings: by key.
      untaught: by form's name and key, of forms trained on labels.
    """

    frozen: Outputs
    tuned: Outputs
    fitted: Mapping[str, Outputs]
    means: Mapping[str, Outputs]
    retrainings: Mapping[str, Outputs]
    untaught: Mapping[str, Mapping[str, Outputs]]

    def by_way(self) -> dict[str, Outputs]:
        """All of them by the names of `FittedReplacements.ways`, the frozen model first."""
        named = {REFERENCE: self.frozen, TUNED: self.tuned}
        for kind, outputs in ((FITTED, self.fitted), (MEAN, self.means), (RETRAINED, self.retrainings)):
            named |= {way(kind, name): each for name, each in outputs.items()}
        for outputs in self.untaught.values():
            named |= {way(UNTAUGHT, key): each for key, each in outputs.items()}
        return named


def way(kind: str, name: str) -> str:
    """The name of a way to classify, of a form or of a model's key."""
    return f"{kind}:{name}"


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
    label: str,
    candidates: Candidates,
    labels: np.ndarray,
    fits: Mapping[str, Fit],
    *,
    images: np.ndarray,
    counts: tuple[int, int],
) -> FittedReplacements:
    """What one tuned model can be exchanged for.

    Args:
      label: the model's, for sentences.
      candidates: models on the study's images.
      labels: `[n]`.
      fits: by form.
      images: numbers of the images in the split, `[n]`.
      counts: how many images were fitted on, and held back.
    """
    ways = candidates.by_way()
    names = [name if name in (REFERENCE, TUNED) else f"{KEPT}:{name}" for name in ways]
    measured = measure(np.stack([each.logits for each in ways.values()], axis=1), labels)
    summary = summarize_replacements(measured, names)

    def compare(kind: str, outputs: Mapping[str, Outputs]) -> dict[str, Comparison]:
        kept = {
            name: ByOutcome(
                accuracy=summary.accuracy.kept[way(kind, name)], calibrated=summary.calibrated.kept[way(kind, name)]
            )
            for name in outputs
        }
        return {name: _compare(candidates, each, labels, kept[name]) for name, each in outputs.items()}

    fitted = compare(FITTED, candidates.fitted)
    return FittedReplacements(
        gain=ByOutcome(accuracy=summary.accuracy.gain, calibrated=summary.calibrated.gain),
        fitted_images=counts[0],
        held_back_images=counts[1],
        moved_images=int((candidates.tuned.decisions != candidates.frozen.decisions).sum()),
        forms={name: _fitted_form(label, name, candidates, fits[name], each) for name, each in fitted.items()},
        means=compare(MEAN, candidates.means),
        retrainings=compare(RETRAINED, candidates.retrainings),
        untaught={form: compare(UNTAUGHT, outputs) for form, outputs in candidates.untaught.items()},
        ways=tuple(ways),
        outcomes=measured.outcomes(images),
        decisions=np.stack([each.decisions for each in ways.values()], axis=1).astype(np.uint16),
    )


def _compare(candidates: Candidates, other: Outputs, labels: np.ndarray, kept: ByOutcome[Estimate]) -> Comparison:
    frozen, tuned = candidates.frozen, candidates.tuned
    difference = accuracy_difference(other.decisions == labels, tuned.decisions == labels)
    return Comparison(
        numbers=other.numbers,
        kept=kept,
        difference=difference,
        margin=proven_margin(difference),
        divergence=mean_divergence(tuned.logits, other.logits),
        agreement=decisions_alike(frozen.decisions, tuned.decisions, other.decisions, labels),
        cosine=mean_cosine(frozen.features, tuned.features, other.features),
    )


def _fitted_form(label: str, name: str, candidates: Candidates, fit: Fit, comparison: Comparison) -> FittedForm:
    retrained = _beside(candidates, name, candidates.retrainings)
    untaught = _beside(candidates, name, candidates.untaught.get(name, {}))
    share = comparison.kept.calibrated.share
    conclusion = conclude(share, list(retrained.values()), list(untaught.values()))
    return FittedForm(
        words=fit.words,
        fitted_divergence=fit.fitted_divergence,
        held_back_divergence=fit.held_back_divergence,
        comparison=comparison,
        beside_retraining=retrained,
        beside_untaught=untaught,
        conclusion=conclusion,
        sentence=conclusion_sentence(label, fit.words, conclusion, share, comparison.agreement.moved),
    )


def _beside(candidates: Candidates, form: str, others: Mapping[str, Outputs]) -> dict[str, Estimate]:
    """A form's agreement on moved decisions less that of each other model; empty where no decision moved."""
    tuned = candidates.tuned.decisions
    moved = tuned != candidates.frozen.decisions
    same = (candidates.fitted[form].decisions == tuned)[moved]
    if not len(same):
        return {}
    return {key: accuracy_difference(same, (other.decisions == tuned)[moved]) for key, other in others.items()}


def conclusion_sentence(label: str, words: str, conclusion: str, share: Estimate | None, moved: Estimate | None) -> str:
    """What is concluded of a form that was fitted to a model.

    Args:
      label: the model's.
      words: the form's.
      conclusion: a key of `CONCLUSIONS`.
      share: of the gain in calibrated log-likelihood; `None` where that is not sure.
      moved: agreement on moved decisions; `None` where there are none.
    """
    text = f"{label} {CONCLUSIONS[conclusion]} {words} fitted to its predictions"
    if share is None:
        return f"{text}: its gain in calibrated log-likelihood is not sure."
    assert share.low is not None and share.high is not None, "a share of a sure gain has an interval"
    text += f": {100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f}) of the gain in calibrated "
    text += "log-likelihood"
    return f"{text}, {100 * moved.value:.0f} % of the moved decisions." if moved else f"{text}."
