"""What a study says of each method: of its only adapter, or of all its seeds together."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.effects import KEPT, LOST
from clipbias.explain.results import RANDOM, load_results, same_but_for_seed
from clipbias.explain.rungs import CONSTANT_METHODS, PLAIN
from clipbias.explain.uncertainty import Estimate, cross, estimate, excludes, resample
from clipbias.report.published import ordered_datasets
from clipbias.report.study_results import StudyResults, accuracy_and_error, by_reason, label_of


@dataclasses.dataclass(frozen=True)
class MethodResults:
    """One method on one dataset; all numbers of several seeds are over seeds and images crossed.

    Attributes:
      label: its name, with the number of seeds where there are several.
      name: the same without that number.
      method: as the registry names it.
      keys: of its adapters in the study.
      accuracy, error: in percent, a mean over seeds, with a binomial standard error.
      gain: in accuracy, over the frozen model with the text that training starts from; without a causal test over
        zero-shot. `None` where it is not known.
      start: accuracy of that frozen model in percent, where it is not zero-shot's.
      prompts: whether it has prompts.
      verdict, test, random, constants: its entries in the study's sections, empty where there is none.
    """

    label: str
    name: str
    method: str
    keys: tuple[str, ...]
    accuracy: float
    error: float
    gain: Estimate | None
    start: float | None
    prompts: bool
    verdict: Mapping[str, Any]
    test: Mapping[str, Any]
    random: Mapping[str, Any]
    constants: Mapping[str, Any]

    def effects(self, outcome: str, tower: str = "both") -> Mapping[str, Any]:
        """Of the causal test, numbers in one outcome."""
        return self.test.get("numbers", {}).get(tower, {}).get(outcome, {})

    def replaced(self, outcome: str) -> Mapping[str, Any]:
        """What constants keep, and what is lost without them, in one outcome; nothing of a method that learns one."""
        return {} if self.method in CONSTANT_METHODS else self.constants.get("numbers", {}).get(outcome, {})

    def share(self, outcome: str, kind: str, name: str = PLAIN) -> Estimate | None:
        """The share of the gain that is "kept" with a constant or "lost" without it, where there is a sure gain."""
        numbers = self.replaced(outcome)
        found = numbers.get(kind, {}).get(name)
        return found if found is not None and excludes(numbers["gain"]) > 0 else None

    def numbers(self, outcome: str) -> dict[str, Estimate]:
        """By name: the gain, effects, interactions, and what constants keep ("kept:kind") and lose ("lost:kind")."""
        own, replaced = self.effects(outcome), self.replaced(outcome)
        found = {"gain": own["gain"], **own["effects"], **own["interactions"]} if own else {}
        return found | {f"{kind}:{name}": x for kind in (KEPT, LOST) for name, x in replaced.get(kind, {}).items()}


def study_methods(study: StudyResults) -> list[MethodResults]:
    """One per method, in the order in which the study names them."""
    return [_method(study, models) for models in same_but_for_seed(study.tuned)]


def _method(study: StudyResults, models: Sequence[Mapping[str, Any]]) -> MethodResults:
    first, keys = models[0], tuple(model["key"] for model in models)
    verdict, test, constants = (_entry(study, name, keys) for name in ("verdict", "factorial", "constants"))
    single = study.section("factorial", keys[0])
    facts = {name: single[name] for name in ("effects", "towers", "streams", "images") if name in single}
    stored = {name: value for name, value in study.section("constants", keys[0]).items() if name != "numbers"}
    name = first["name"] if len(keys) > 1 else label_of(first)
    found = MethodResults(
        label=name if len(keys) == 1 else f"{name}, {len(keys)} seeds",
        name=name,
        method=first["method"],
        keys=keys,
        accuracy=float(np.mean([accuracy_and_error(model)[0] for model in models])),
        error=float(np.mean([accuracy_and_error(model)[1] for model in models])),
        gain=None,
        start=None,
        prompts=bool(first["vision_prompts"] or first["text_prompts"]),
        verdict=verdict,
        test={**facts, **test},
        random=study.section("factorial", f"{keys[0]}{RANDOM}"),
        constants={**stored, **constants},
    )
    gain = (found.effects("accuracy") or found.constants.get("numbers", {}).get("accuracy", {})).get("gain")
    return dataclasses.replace(found, gain=gain or _over_zero_shot(study, keys), start=_other_start(study, found))


def _entry(study: StudyResults, section: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """What a section says of one model, or of several seeds together, or why it says nothing of the first of them."""
    if len(keys) == 1:
        return study.section(section, keys[0])
    together = study.scalars.get(section, {}).get("seeds") or ()
    reason = study.section(section, keys[0]).get("missing")
    return next((one for one in together if one["models"] == list(keys)), {"missing": reason} if reason else {})


def _over_zero_shot(study: StudyResults, keys: Sequence[str]) -> Estimate | None:
    """The change of accuracy from zero-shot in points, of a method without a causal test."""
    labels, zero = study.array("predictions/labels"), study.array(f"predictions/{study.zero_shot['key']}")
    tuned = [study.array(f"predictions/{key}") for key in keys]
    known = [own for own in tuned if own is not None]
    if labels is None or zero is None or len(known) < len(keys):
        return None
    read = np.logical_and.reduce([own >= 0 for own in (zero, *known)])
    changes = [100.0 * ((own == labels) - 1.0 * (zero == labels))[read] for own in known]
    draws = cross([resample(own[:, None]) for own in changes])[:, 0]
    return estimate(float(np.mean([own.mean() for own in changes])), draws)


def _other_start(study: StudyResults, method: MethodResults) -> float | None:
    """The accuracy that training starts from, where the same images have another one under zero-shot."""
    start = method.effects("accuracy").get("reference", {}).get("value")
    labels, zero = study.array("predictions/labels"), study.array(f"predictions/{study.zero_shot['key']}")
    images = study.array(f"factorial/{method.keys[0]}/images")
    if start is None or labels is None or zero is None or images is None:
        return None
    return start if abs(start - 100 * (zero == labels)[images].mean()) > 0.05 else None


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """One method on several datasets.

    Attributes:
      name: how it is called.
      method: as the registry names it.
      by_dataset: in the order in which datasets are shown.
    """

    name: str
    method: str
    by_dataset: Mapping[str, MethodResults]


def summarize_methods(studies: Iterable[StudyResults]) -> list[MethodSummary]:
    """One summary for each method with a causal test or constants, in the order in which the studies name methods."""
    found: dict[str, dict[str, MethodResults]] = {}
    for study in studies:
        for each in study_methods(study):
            if each.effects("accuracy") or each.replaced("accuracy"):
                found.setdefault(each.name, {})[study.dataset] = each
    return [
        MethodSummary(name, next(iter(own.values())).method, {each: own[each] for each in ordered_datasets(own)})
        for name, own in found.items()
    ]


def left_out(studies: Sequence[StudyResults]) -> list[str]:
    """Which methods no study has a verdict on, with the reasons: for one, there is nothing to take apart."""
    asked = {each.name for each in summarize_methods(studies)}
    return by_reason(
        (each.name, each.verdict.get("missing", ""))
        for study in studies
        for each in study_methods(study)
        if each.name not in asked
    )


def load_studies(folders: Iterable[Path]) -> dict[Path, StudyResults]:
    """Studies by their folders, in the order in which datasets are shown.

    Raises:
      ClipbiasError: two folders hold the same dataset, or results are missing or damaged.
    """
    found: dict[str, tuple[Path, StudyResults]] = {}
    for folder in folders:
        study = StudyResults(load_results(folder))
        if study.dataset in found:
            raise ClipbiasError(
                f"{folder} and {found[study.dataset][0]} both hold {study.dataset}; give one of them. Seeds belong "
                "into one study."
            )
        found[study.dataset] = folder, study
    return dict(found[name] for name in ordered_datasets(found))
