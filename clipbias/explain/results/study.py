"""All results of a study."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from clipbias.explain.results.attention import Decomposition, ModelWords, TextAttention, VisionAttention
from clipbias.explain.results.effects import CausalTests, MethodResult
from clipbias.explain.results.facts import ClipFacts, DatasetFacts, Missing, ModelFacts, Predictions
from clipbias.explain.results.maps import Examples, Exploration, Faithfulness, Relevancy, Similarity
from clipbias.explain.results.observations import Observations
from clipbias.explain.results.replacement import ReplacementResults

SECTIONS = (
    "predictions",
    "relevancy",
    "text_attention",
    "vision_attention",
    "similarity",
    "decomposition",
    "causal",
    "faithfulness",
    "examples",
    "explore",
    "words",
    "replacement",
    "observations",
)
T = TypeVar("T")


class HasSettings(Protocol):
    """A model with what its training was asked for, but for its seed."""

    @property
    def method(self) -> str: ...

    @property
    def options(self) -> dict[str, object]: ...

    @property
    def trained_on(self) -> str | None: ...


M = TypeVar("M", bound=HasSettings)


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that a study found: facts, then the sections of `SECTIONS`, then what follows from them."""

    dataset: DatasetFacts
    clip: ClipFacts
    models: tuple[ModelFacts, ...]
    sections: tuple[str, ...]
    config: dict[str, object]
    seconds: float
    predictions: Predictions
    relevancy: dict[str, Relevancy | Missing] | None = None
    text_attention: dict[str, TextAttention | Missing] | None = None
    vision_attention: dict[str, VisionAttention | Missing] | None = None
    similarity: Similarity | None = None
    decomposition: dict[str, Decomposition | Missing] | None = None
    causal: CausalTests | None = None
    faithfulness: Faithfulness | None = None
    examples: Examples | None = None
    explore: Exploration | None = None
    words: dict[str, ModelWords | Missing] | None = None
    replacement: ReplacementResults | None = None
    observations: Observations | None = None
    methods: tuple[MethodResult, ...] = ()

    @property
    def zero_shot(self) -> ModelFacts:
        return self.models[0]

    @property
    def tuned(self) -> tuple[ModelFacts, ...]:
        return self.models[1:]

    def why_missing(self, section: str) -> dict[str, str]:
        """By model the reason why a section leaves it out."""
        result = getattr(self, section)
        models = result if isinstance(result, dict) else getattr(result, "models", {})
        return {key: model.reason for key, model in models.items() if isinstance(model, Missing)}

    @property
    def sentence(self) -> str:
        """The verdicts in words, a sentence for each method."""
        return " ".join(method.sentence for method in self.methods)


def present(results: Mapping[str, T | Missing] | None) -> dict[str, T]:
    """Of a section's results by model those that there are."""
    return {key: result for key, result in (results or {}).items() if not isinstance(result, Missing)}


def same_but_for_seed(models: Sequence[M]) -> list[list[M]]:
    """Models by method, options and training set, in the order in which they come."""
    groups: dict[tuple[str, str, str | None], list[M]] = {}
    for model in models:
        settings = model.method, json.dumps(model.options, sort_keys=True), model.trained_on
        groups.setdefault(settings, []).append(model)
    return list(groups.values())
