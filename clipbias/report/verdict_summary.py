"""The verdicts of several studies as one: per method the same numbers for every dataset, and their means.

A dataset is one observation, whatever its number of images. Seeds of one method on one dataset are averaged first, and
their intervals' ends too: seeds share their images, so that averaging narrows nothing.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clipbias.explain.results import EFFECTS, FORMS
from clipbias.explain.uncertainty import LEVEL, Estimate, excludes, mean_of_few
from clipbias.explain.verdict_words import HALF, NAMES, amount
from clipbias.report.gains import OVER_ZERO_SHOT, over_zero_shot
from clipbias.report.published import dataset_name, ordered_datasets
from clipbias.report.study_results import StudyResults, by_reason, label_of

_SHORT_FORMS = {
    "vector": "one vector per layer keeps",
    "kind": "two vectors per layer, by kind of token, keep",
    "token": "one vector per token keeps",
}


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """What the verdicts on one method say.

    Attributes:
      label: how it is called.
      datasets: by name, in the order in which they are shown, the number of seeds.
      numbers: by outcome, quantity (gain, an effect, a form of a constant) and dataset, with a share of the gain where
        that is surely above 0.
      contradictions: datasets on which two seeds contradict each other.
      method: its name, by which it is grouped with others of its kind.
    """

    label: str
    datasets: Mapping[str, int]
    numbers: Mapping[tuple[str, str], Mapping[str, Estimate]]
    contradictions: tuple[str, ...] = ()
    method: str = ""

    def mean(self, outcome: str, quantity: str) -> Estimate | None:
        """The mean change over datasets, with Student's interval; `None` where a dataset lacks it."""
        return self._mean([number["value"] for number in self.of(outcome, quantity).values()])

    def mean_of_these(self, outcome: str, quantity: str) -> Estimate | None:
        """The same mean with an interval over images alone: of these datasets, whatever others would give.

        Datasets have no image in common, so that the squares of their intervals' arms add up.
        """
        numbers, mean = self.of(outcome, quantity).values(), self.mean(outcome, quantity)
        if mean is None or mean["value"] is None:
            return None
        arms = [
            math.sqrt(sum(((number["value"] or 0.0) - (number[end] or 0.0)) ** 2 for number in numbers)) / len(numbers)
            for end in ("low", "high")
        ]
        return {"value": mean["value"], "low": mean["value"] - arms[0], "high": mean["value"] + arms[1]}

    def mean_share(self, outcome: str, quantity: str) -> Estimate | None:
        """The mean share of the gain over datasets; `None` where one has no sure gain to share out."""
        return self._mean([number.get("share") for number in self.of(outcome, quantity).values()])

    def of(self, outcome: str, quantity: str) -> Mapping[str, Estimate]:
        """By dataset, one quantity of an outcome."""
        return self.numbers.get((outcome, quantity), {})

    def _mean(self, values: Sequence[float | None]) -> Estimate | None:
        found = [value for value in values if value is not None]
        return mean_of_few(found) if found and len(found) == len(self.datasets) else None


def summarize_verdicts(studies: Iterable[StudyResults]) -> list[MethodSummary]:
    """One summary per method, in the order in which the studies name them.

    Args:
      studies: of any datasets; several of one dataset count as one, as do several adapters of one method in a study.
    """
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    labels: dict[str, tuple[str, str]] = {}
    for study in studies:
        for model, first in with_firsts(study):
            verdict, key = study.section("verdict", model["key"]), first["key"]
            if verdict.get("effects") or verdict.get("kept"):
                labels.setdefault(key, (label_of(model), model["method"]))
                gains = {"over_zero_shot": over_zero_shot(study, model)}
                found.setdefault(key, {}).setdefault(study.dataset, []).append({**verdict, **gains})
    return [_summary(*labels[key], by_dataset) for key, by_dataset in found.items()]


def with_firsts(study: StudyResults) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each adapter of a study, and the first of those that differ from it in their seed alone."""
    firsts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for model in study.tuned:
        yield model, firsts.setdefault((model["method"], json.dumps(model["options"], sort_keys=True)), model)


def left_out(studies: Iterable[StudyResults]) -> list[str]:
    """Which methods no study has a verdict on, with the reasons: for one, there is nothing to take apart."""
    found: dict[str, str] = {}
    asked: set[str] = set()
    for study in studies:
        for model, first in with_firsts(study):
            verdict = study.section("verdict", model["key"])
            if verdict.get("effects") or verdict.get("kept"):
                asked.add(label_of(first))
            elif verdict:
                found.setdefault(label_of(first), verdict["missing"])
    return by_reason((label, reason) for label, reason in found.items() if label not in asked)


def _numbers(verdict: Mapping[str, Any]) -> dict[tuple[str, str], Estimate]:
    """One model's numbers by outcome and quantity; shares only of gains that are surely above 0."""
    found = {(OVER_ZERO_SHOT, name): number for name, number in verdict["over_zero_shot"].items()}
    for outcome in NAMES:
        effects = ((verdict.get("effects") or {}).get(outcome) or {}).get("both")
        kept = (verdict.get("kept") or {}).get(outcome)
        for numbers, gain in ((effects, "gain"), (kept, "tuned")):
            for name, number in (numbers or {}).items():
                sure = numbers is not None and excludes(numbers[gain]) > 0
                shares = {} if sure else {"share": None, "share_low": None, "share_high": None}
                found[outcome, name] = dict(number) | shares
    return found


def _summary(label: str, method: str, verdicts: Mapping[str, Sequence[Mapping[str, Any]]]) -> MethodSummary:
    datasets = ordered_datasets(verdicts)
    found = {dataset: [_numbers(verdict) for verdict in verdicts[dataset]] for dataset in datasets}
    names = dict.fromkeys(name for seeds in found.values() for numbers in seeds for name in numbers)
    numbers = {
        name: {dataset: average_seeds([seed[name] for seed in found[dataset]]) for dataset in datasets}
        for name in names
        if all(name in seed for seeds in found.values() for seed in seeds)
    }
    seeds = {dataset: len(found[dataset]) for dataset in datasets}
    contradictions = tuple(name for name in datasets if contradict(verdicts[name]))
    return MethodSummary(label, seeds, numbers, contradictions, method)


def contradict(verdicts: Sequence[Mapping[str, Any]], outcome: str = "log_likelihood") -> bool:
    """Whether two seeds' intervals of one effect's share of an outcome's gain lie apart."""
    effects = [verdict["effects"][outcome]["both"] for verdict in verdicts if verdict.get("effects")]
    for name in EFFECTS:
        ends = [(one[name]["share_low"], one[name]["share_high"]) for one in effects if name in one]
        known = [(low, high) for low, high in ends if low is not None]
        if known and max(low for low, _ in known) > min(high for _, high in known):
            return True
    return False


def average_seeds(numbers: Sequence[Estimate]) -> Estimate:
    """The mean over seeds, and that of the ends of their intervals."""
    found: Estimate = {}
    for name in dict.fromkeys(name for number in numbers for name in number):
        values = [number.get(name) for number in numbers]
        known = [value for value in values if value is not None]
        found[name] = sum(known) / len(known) if len(known) == len(values) else None
    return found


def sentences(summary: MethodSummary) -> list[str]:
    """What follows from the means' intervals over datasets; nothing does from one dataset."""
    said = []
    count = len(summary.datasets)
    gains = {outcome: summary.mean(outcome, "gain") for outcome in NAMES}
    if count > 1 and all(gains.values()):
        shown = [amount(gain, outcome) for outcome, gain in gains.items() if gain]
        said.append(
            f"Over {count} datasets {summary.label} gains {shown[1]} of accuracy and {shown[0]} of log-likelihood on"
            f" average; a dataset is one observation, and intervals hold {100 * LEVEL:.0f} %."
        )
        parts = {name: summary.mean_of_these("accuracy", name) for name in ("gain", *EFFECTS)}
        shown = [f"{name} {amount(number, 'accuracy')}" for name, number in parts.items() if number]
        said.append(f"On these datasets as they are, with intervals over their images: {', '.join(shown)}.")
        outcome = next((name for name, gain in gains.items() if gain and excludes(gain) > 0), None)
        if outcome is None:
            said.append("Undecided, because neither interval of these gains excludes 0.")
        else:
            said += _shared_out(summary, outcome)
    if summary.contradictions:
        names = ", ".join(map(dataset_name, summary.contradictions))
        said.append(f"Seeds of {summary.label} contradict each other on {names}, so nothing is decided there.")
    elif max(summary.datasets.values()) > 1:
        said.append(f"Seeds of {summary.label} agree on every dataset: their intervals overlap.")
    return said


def _shared_out(summary: MethodSummary, outcome: str) -> list[str]:
    shares = {name: summary.mean_share(outcome, name) for name in EFFECTS if summary.of(outcome, name)}
    known = {name: number for name, number in shares.items() if number is not None}
    if not known:
        return [f"Undecided, because not every dataset has a sure gain in {NAMES[outcome]} to share out."]
    parts = ", ".join(f"{name} {percent_of(number)}" for name, number in known.items())
    most = [name for name, number in known.items() if excludes(number, HALF) > 0]
    if summary.contradictions:
        follows = "undecided, because seeds contradict each other"
    elif most:
        follows = f"so {most[0]} {'carry' if most == ['values'] else 'carries'} most of it"
    else:
        follows = "undecided which carries most, because none of these intervals lies above a half"
    said = [f"Of the gain in {NAMES[outcome]}: {parts}; {follows}."]
    kept = {form: summary.mean_share(outcome, form) for form in FORMS}
    words = {1: "most of it", -1: "less than half", 0: "undecided whether that is most of it"}
    for form, number in kept.items():
        if number is not None:
            side = words[excludes(number, HALF)]
            said.append(f"In the method's place {_SHORT_FORMS[form]} {percent_of(number)}: {side}.")
    return said


def percent_of(number: Estimate) -> str:
    """A mean share in whole percent with its interval, where it has one."""
    value, low, high = (None if x is None else round(100 * x) for x in (number[n] for n in ("value", "low", "high")))
    return f"{value} %" + ("" if low is None else f" ({low} to {high})")
