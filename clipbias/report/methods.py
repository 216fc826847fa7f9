"""What a study says of each method, of one dataset and of several, for figures and tables."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.explain.effects import KEPT, LOST
from clipbias.explain.endpoint import TOKENS_ALONE
from clipbias.explain.replacement_names import PLAIN
from clipbias.explain.results import (
    ByOutcome,
    CausalTest,
    ConstantTest,
    Effects,
    EffectSummary,
    MethodResult,
    Replacements,
    StudyResults,
    Verdict,
    load_results,
)
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import by_reason
from clipbias.report.published import ordered_datasets

ATTENTION_ALONE = "attention alone"
ALL_ADDED = "all that is added"
MEAN_ADDED = "mean of what is added"
BEST_ADDED = "best constant"


@dataclasses.dataclass(frozen=True)
class MethodResults:
    """One method on one dataset; all numbers of several seeds are over seeds and images crossed.

    Attributes:
      facts: its names, accuracy and gain.
      verdict, summary: `None` where there is none.
      replaced: what replacements keep; `None` of a method that learns a constant.
      test, constants: of its first adapter.
    """

    facts: MethodResult
    verdict: Verdict | None
    summary: EffectSummary | None
    replaced: ByOutcome[Replacements] | None
    test: CausalTest | None
    constants: ConstantTest | None

    def effects(self, outcome: str, tower: str = "both") -> Effects | None:
        """Of the causal test, numbers in one outcome."""
        return None if self.summary is None else self.summary.towers[tower][outcome]

    def named(self, outcome: str) -> dict[str, Estimate]:
        """By name: the gain, what attention and tokens give alone, effects and interactions, and what is added."""
        effects = self.effects(outcome)
        if effects is None:
            return {}
        alone = {ATTENTION_ALONE: effects.attention_alone, TOKENS_ALONE: effects.tokens_alone}
        return {"gain": effects.gain, **alone, **effects.effects, **effects.interactions, **self.added(outcome)}

    def added(self, outcome: str) -> dict[str, Estimate]:
        """What is added to image tokens, of a method that changes texts alone to text tokens: all, mean, best constant.

        Empty of a method that learns a constant, of which that is no finding.
        """
        added = None if self.summary is None or self.facts.learns_constant else self.summary.added
        if added is None:
            return {}
        numbers = added[1][outcome]
        best = {} if numbers.fitted is None else {BEST_ADDED: numbers.fitted}
        return {ALL_ADDED: numbers.all, MEAN_ADDED: numbers.steps["constant"], **best}

    def replacements(self, outcome: str, kind: str) -> dict[str, Estimate]:
        """What replacements keep of the gain, or what is lost without them, by name."""
        if self.replaced is None:
            return {}
        return self.replaced[outcome].kept if kind == KEPT else self.replaced[outcome].lost

    def share(self, outcome: str, kind: str, name: str = PLAIN) -> Estimate | None:
        """The share of the gain that is "kept" with a replacement or "lost" without it, where there is a sure gain."""
        number = self.replacements(outcome, kind).get(name)
        if number is None or self.replaced is None or excludes(self.replaced[outcome].gain) <= 0:
            return None
        return number.share

    def numbers(self, outcome: str) -> dict[str, Estimate]:
        """By name those of `named`, and what replacements keep ("kept:kind") and lose ("lost:kind")."""
        numbers = self.named(outcome)
        for kind in (KEPT, LOST):
            numbers |= {f"{kind}:{name}": number for name, number in self.replacements(outcome, kind).items()}
        return numbers


def study_methods(study: StudyResults) -> list[MethodResults]:
    """One per method, in the order in which the study names them."""
    return [
        MethodResults(
            facts=facts,
            verdict=study.verdict_on(facts.models),
            summary=study.effects(facts.models),
            replaced=None if facts.learns_constant else study.replacements(facts.models),
            test=study.causal_test(facts.models[0]),
            constants=study.constant_test(facts.models[0]),
        )
        for facts in study.methods
    ]


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
    summaries: dict[str, dict[str, MethodResults]] = {}
    for study in studies:
        for method in study_methods(study):
            if method.summary or method.replaced:
                summaries.setdefault(method.facts.name, {})[study.dataset.name] = method
    return [
        MethodSummary(
            name, next(iter(methods.values())).facts.method, {each: methods[each] for each in ordered_datasets(methods)}
        )
        for name, methods in summaries.items()
    ]


def left_out(studies: Sequence[StudyResults]) -> list[str]:
    """Which methods no study has a verdict on, with the reasons: for one, there is nothing to take apart."""
    summarized = {summary.name for summary in summarize_methods(studies)}
    return by_reason(
        (method.facts.name, None if method.verdict is None else method.verdict.missing)
        for study in studies
        for method in study_methods(study)
        if method.facts.name not in summarized
    )


def load_studies(folders: Iterable[Path]) -> dict[Path, StudyResults]:
    """Studies by their folders, in the order in which datasets are shown.

    Raises:
      ClipbiasError: two folders hold the same method on the same dataset, or results are missing or damaged.
    """
    studies: dict[Path, StudyResults] = {}
    holders: dict[tuple[str, str], Path] = {}
    for folder in folders:
        studies[folder] = study = load_results(folder)
        dataset = study.dataset.name
        for name in dict.fromkeys(model.name for model in study.tuned):
            if (holder := holders.setdefault((dataset, name), folder)) != folder:
                raise ClipbiasError(
                    f"{folder} and {holder} both hold {name} on {dataset}; give one of them. Seeds belong into one"
                    " study."
                )
    order = ordered_datasets(study.dataset.name for study in studies.values())
    return dict(sorted(studies.items(), key=lambda item: order.index(item[1].dataset.name)))
