"""What a report says first: the question, and the answer in three sentences, all of them about accuracy.

Each method has one row; seeds of a method are averaged, and the ends of their intervals too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.explain.results import FORMS
from clipbias.explain.uncertainty import LEVEL, Estimate, excludes
from clipbias.explain.verdict_words import HALF, amount, percent
from clipbias.report.gains import over_zero_shot
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, label_of
from clipbias.report.verdict_summary import MethodSummary, average_seeds, contradict, summarize_verdicts, with_firsts

OUTCOME = "accuracy"
_FEW = 3  # methods whose numbers a sentence lists one by one
# What carries most of a gain, and for which of the two answers that speaks.
_CARRIERS = {
    "attention": ("attention among input tokens", "for (a)"),
    "scale": ("attention that prompts take away from input tokens", "for neither (a) nor (b)"),
    "values": ("what is added to tokens", "against (a)"),
}
_KEPT = {
    1: "most of it, which speaks for (b)",
    -1: "less than half of it, which speaks against (b)",
    0: "undecided whether that is most of it",
}
# A learned bias is a constant: that such a constant keeps all of its gain is no finding.
_BY_CONSTRUCTION: dict[str, tuple[str, ...]] = {"bias": FORMS, "bias_by_kind": ("kind", "token")}


@dataclasses.dataclass(frozen=True)
class MethodAnswer:
    """One method on one dataset.

    Attributes:
      label: its name.
      seeds: how many adapters are averaged.
      accuracy, error: in percent, the error a binomial standard error.
      gain: over zero-shot with the dataset's template, in points; `None` where that is not known.
      starts_elsewhere: whether training started from a text that is not as accurate as the dataset's template.
      numbers: of the causal test and the constants, in points and as shares of the gain over the method's own start:
        "reference", "gain", the effects, and "vector" and "kind" for the constants. Empty where nothing was measured.
      contradiction: whether two seeds contradict each other about a share.
    """

    label: str
    seeds: int
    accuracy: float
    error: float
    gain: Estimate | None
    starts_elsewhere: bool
    numbers: Mapping[str, Estimate]
    contradiction: bool = False

    @property
    def carrier(self) -> str:
        """The one effect whose share surely lies above a half, or nothing."""
        most = [name for name in _CARRIERS if self.side(name) > 0]
        return most[0] if len(most) == 1 and not self.contradiction else ""

    def side(self, name: str) -> int:
        """On which side of a half a share lies: 1, -1, or 0 where its interval includes a half or there is none."""
        return excludes(self.numbers[name], HALF, of="share") if self.has(name) else 0

    def has(self, name: str) -> bool:
        """Whether there is such a share of a sure gain."""
        return self.numbers.get(name, {}).get("share") is not None


def method_answers(study: StudyResults) -> list[MethodAnswer]:
    """One per method, in the order in which the study names them."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for model, first in with_firsts(study):
        groups.setdefault(first["key"], []).append(model)
    summaries = {each.label: each for each in summarize_verdicts([study])}
    return [_method(study, models, summaries.get(label_of(models[0]))) for models in groups.values()]


def _method(study: StudyResults, models: Sequence[Mapping[str, Any]], summary: MethodSummary | None) -> MethodAnswer:
    numbers = {
        name: by_dataset[study.dataset]
        for (outcome, name), by_dataset in (summary.numbers if summary else {}).items()
        if outcome == OUTCOME and name not in _BY_CONSTRUCTION.get(models[0]["method"], ())
    }
    accuracies = [accuracy_and_error(model) for model in models]
    over = [over_zero_shot(study, model) for model in models]
    verdicts = [study.section("verdict", model["key"]) for model in models]
    accuracy, error = (float(np.mean(values)) for values in zip(*accuracies, strict=True))
    return MethodAnswer(
        label_of(models[0]),
        len(models),
        accuracy,
        error,
        average_seeds([each["gain"] for each in over]) if all(over) else None,
        "gain" in numbers and any(abs(each["start"]["value"] or 0.0) > 0.05 for each in over if "start" in each),
        numbers,
        contradict(verdicts, OUTCOME),
    )


def question(study: StudyResults) -> str:
    """What the study asks, for a reader who has read nothing else."""
    prompts = any(model["vision_prompts"] or model["text_prompts"] for model in study.tuned)
    learned = "prompts, a few vectors that are learned and join its input" if prompts else "a few learned numbers"
    return (
        f"CLIP stays as it is and gets {learned}. Why does it then recognise more images? Two answers are possible:"
        " (a) they change where CLIP looks, that is, which tokens attend to which; (b) they add a bias to its tokens,"
        " the same for every image. To find out, frozen and tuned CLIP run side by side, and one effect after the other"
        " is exchanged between them."
    )


def answer_sentences(study: StudyResults, methods: Sequence[MethodAnswer]) -> list[str]:
    """What came out, in at most three sentences; a side is taken only where a whole interval lies on it."""
    zero_shot = accuracy_and_error(study.zero_shot)[0]
    said = [f"Zero-shot CLIP gets {zero_shot:.1f} % of the images right; {_gained(methods)}."]
    tested = [each for each in methods if "gain" in each.numbers]
    sure = [each for each in tested if excludes(each.numbers["gain"]) > 0]
    if tested and not sure:
        return [*said, "No gain in accuracy is sure, so there is nothing to explain: more images would tell more."]
    carried = [
        f"{what} carries {_listed(own, effect)}: most of it, which speaks {speaks}"
        for effect, (what, speaks) in _CARRIERS.items()
        if (own := [each for each in sure if each.carrier == effect])
    ]
    if undecided := [each for each in sure if not each.carrier]:
        carried.append(f"no single effect surely carries more than half with {_names(undecided)}")
    if unsure := [each for each in tested if each not in sure]:
        carried.append(f"with {_names(unsure)} it is not sure that there is a gain")
    kept = [
        f"{_listed(own, 'kind')}: {words}"
        for side, words in _KEPT.items()
        if (own := [each for each in sure if each.has("kind") and each.side("kind") == side])
    ]
    said += [f"Of the gain in accuracy, {'; '.join(carried)}."] if carried else []
    constants = "two vectors per layer that replace the method, the same for every image, keep"
    return [*said, f"Of the same gain in accuracy, {constants} {'; '.join(kept)}."] if kept else said


def _gained(methods: Sequence[MethodAnswer]) -> str:
    known = [(each.label, each.gain) for each in methods if each.gain is not None]
    if not known:
        return "no tuned model was tested"
    if len(known) <= _FEW:
        return f"tuning changes that by {_and([f'{amount(gain, OUTCOME)} with {label}' for label, gain in known])}"
    sure = sum(excludes(gain) > 0 for _, gain in known)
    label, best = max(known, key=lambda each: each[1]["value"] or 0.0)
    return f"{sure} of {len(known)} methods surely gain, most of all {label}: {amount(best, OUTCOME)}"


def _listed(methods: Sequence[MethodAnswer], name: str) -> str:
    """Shares with the methods that have them; of many methods the range."""
    if len(methods) <= _FEW:
        return _and([f"{percent(dict(each.numbers[name]))} with {each.label}" for each in methods])
    shares = [round(100 * float(each.numbers[name]["share"] or 0.0)) for each in methods]
    return f"{min(shares)} to {max(shares)} % with {len(methods)} methods"


def _names(methods: Sequence[MethodAnswer]) -> str:
    return _and([each.label for each in methods]) if len(methods) <= _FEW else f"{len(methods)} methods"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def certainty(study: StudyResults, methods: Sequence[MethodAnswer]) -> str:
    """How sure the answer is, and what it says nothing about."""
    counts = dict.fromkeys(
        number["images"] for model in study.tuned if "images" in (number := study.section("verdict", model["key"]))
    )
    tested = " or ".join(counted(count, "image") for count in counts) or counted(study.zero_shot["images"], "image")
    split = study.scalars["dataset"]["split"]
    seeds = max((each.seeds for each in methods), default=1)
    other = "other datasets" if seeds > 1 else "other training runs or datasets"
    return (
        f"How sure: in brackets {100 * LEVEL:.0f} % intervals, over {tested} of the {split} split;"
        " “most” and “less than half” are said only where a whole interval lies on that side of 50 %. Nothing here"
        f" tells of {other}."
    )
