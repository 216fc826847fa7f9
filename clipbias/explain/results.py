"""What a study finds: `explain` computes these records, `results_file` keeps them, `report` reads them.

Layers are counted from 0. A section that was not requested is `None`; a model that a section leaves out has `Missing`
in its place. Letters of shapes: `n` images of the split, `K` pictures or mixtures, `L` layers, `H` heads, `M` patches,
`V` vision prompts, `N` tokens, `C` classes, `D` width, `R` pixels along a side.
"""

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from clipbias.data.confusion import binomial_error
from clipbias.explain.effects import *  # noqa: F403  # all records are imported from here
from clipbias.explain.effects import CausalTests, MethodReplacements, MethodResult, ModelReplacements
from clipbias.explain.uncertainty import Estimate

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
CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
TEXT_KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
VISION_KINDS = ("patches", "prompts")
GROUPS = ("corrected", "both_right", "all")
MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Missing:
    """Why a section has no result for a model, in one sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean over samples and its standard error, arrays of one shape."""

    mean: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The images that were explained."""

    name: str
    split: str
    images: int  # how many could be read
    class_names: tuple[str, ...]
    template: str  # zero-shot's text


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """The frozen model and its geometry."""

    name: str
    fingerprint: str
    image_size: int
    grid: int  # patches along one side
    patches: int
    tokens: int  # of an image without prompts: the patches, and `[cls]` where there is one
    vision_layers: int


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters; `shared` belong to no single tower."""

    total: int
    vision: int
    text: int
    shared: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model of the study."""

    key: str  # unique in the study; "zero_shot" for the first
    label: str  # in figures
    name: str  # of all its seeds together
    method: str
    options: dict[str, object]
    trained_on: str | None  # its dataset, where that is known
    parameters: ParameterCount
    # vision_prompts, text_prompts: learned tokens, `V` and `T`.
    vision_prompts: int
    text_prompts: int
    vision_depth: int  # layers of the vision tower with learned tokens of their own
    changes_vision: bool  # whether its vision tower is another than CLIP's
    # accuracy, images: in percent, of the images that could be read.
    accuracy: float
    images: int
    source: str  # where its adapter lies

    @property
    def has_prompts(self) -> bool:
        return bool(self.vision_prompts or self.text_prompts)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial, in points."""
        return binomial_error(self.accuracy, self.images)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class that every model gives each image, int32 `[n]`; -1 for an image that not all models saw."""

    labels: np.ndarray
    models: dict[str, np.ndarray]  # by key

    @property
    def zero_shot(self) -> np.ndarray:
        return next(iter(self.models.values()))

    def right(self, key: str) -> np.ndarray:
        """Which images a model gets right."""
        return self.models[key] == self.labels

    def changes(self, key: str) -> np.ndarray:
        """What a tuned model changes of every image, numbers of `CHANGES`; -1 for an image that was not read."""
        was_right = self.zero_shot == self.labels
        is_right = self.right(key)
        change = np.select([~was_right & is_right, was_right & ~is_right, was_right & is_right], [0, 1, 2], 3)
        return np.where((self.zero_shot < 0) | (self.models[key] < 0), -1, change)


@dataclasses.dataclass(frozen=True)
class BothModels:
    """Zero-shot's row and the tuned model's over the same samples."""

    zero_shot: Average
    tuned: Average


@dataclasses.dataclass(frozen=True)
class RelevancyGroup:
    """Relevancy for the true class over one group of images."""

    count: int
    vision: BothModels  # `[M + V]`: patches row by row, then prompts (zero-shot: `V = 0`)
    # `[N]` by token index, 0 after the text's end; several texts of a class are added up by token index.
    text: BothModels
    # vision_kinds, text_kinds: sums by `VISION_KINDS` `[2]`, by `TEXT_KINDS[:5]` `[5]`.
    vision_kinds: BothModels
    text_kinds: BothModels
    # order, variation: `[1]`, rank correlation and total variation between the two models' rows over the patches.
    order: Average
    variation: Average


@dataclasses.dataclass(frozen=True)
class RelevancyText:
    """The text that a model's relevancy was computed with."""

    text: str
    texts: int  # of each class
    index_kinds: tuple[str, ...]  # the kind of the token at each index, "" where it differs by class


@dataclasses.dataclass(frozen=True)
class Relevancy:
    """Relevancy over the groups of `GROUPS`; a group without images is `None`."""

    zero_shot: RelevancyText
    tuned: RelevancyText
    corrected: RelevancyGroup | None  # images that zero-shot gets wrong and the tuned model right
    both_right: RelevancyGroup | None  # the control
    all: RelevancyGroup | None

    @property
    def groups(self) -> dict[str, RelevancyGroup]:
        """Those with images, by name."""
        groups = {"corrected": self.corrected, "both_right": self.both_right, "all": self.all}
        return {name: group for name, group in groups.items() if group is not None}

    @property
    def corrected_count(self) -> int:
        return 0 if self.corrected is None else self.corrected.count


@dataclasses.dataclass(frozen=True)
class SimilarityMaps:
    """Maps `[K, S, R, R]` in 0 … 1 of one tuned model."""

    zero_shot_cls: np.ndarray
    cls: np.ndarray
    prompts: np.ndarray  # 1 minus the min-max of the mean distance to the prompts
    rank_correlation: Average  # `[L]` between the last two, over the dataset
    count: int


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Fig. 6; `K` pictures are every example in every rotation. Pictures are `None` where no model has prompts."""

    images: np.ndarray | None  # uint8 `[K, R, R, 3]`
    rotations: np.ndarray | None  # `[K]`, degrees
    layers: np.ndarray | None  # `[S]`
    models: dict[str, SimilarityMaps | Missing]


@dataclasses.dataclass(frozen=True)
class PerturbationCurve:
    """Accuracy while patches are removed, `[S]`, and the area under it."""

    accuracy: np.ndarray
    area: float


@dataclasses.dataclass(frozen=True)
class ModelFaithfulness:
    """The perturbation test of one model, by map of `MAPS`, direction and target.

    `positive`: the most relevant patches go first; `negative`: the least relevant. Maps are of the `predicted` and of
    the `true` class.
    """

    count: int
    maps: dict[str, dict[str, dict[str, PerturbationCurve]]]


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """The perturbation test (Chefer et al. 2021); `fractions [S]` are shares of the patches removed."""

    fractions: np.ndarray
    models: dict[str, ModelFaithfulness | Missing]


@dataclasses.dataclass(frozen=True)
class ExampleMaps:
    """A model's maps of the examples, for the true class: `vision [K, M + V]`, `text [K, N]`, `logits [K, C]`."""

    vision: np.ndarray
    text: np.ndarray
    logits: np.ndarray
    # Of each picture's text, up to but without EOS; of several texts of a class the first is shown.
    tokens: tuple[tuple[str, ...], ...]
    texts: int  # of each class


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures with their relevancy: uint8 `images [K, R, R, 3]`, `labels [K]`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExampleMaps | Missing]


@dataclasses.dataclass(frozen=True)
class ExploredModel:
    """A model's maps to explore. A map is uint8 with a scale: value = q · scale / 255 (+ lowest)."""

    relevancy: np.ndarray  # `[P, M]`, over patches, of each pair of an image and a class; its scale `[P]`
    relevancy_scale: np.ndarray
    relevancy_sum: np.ndarray  # `[P]`, of the row with its prompts
    slot_relevancy: np.ndarray  # `[P, V]`
    text: np.ndarray  # `[P, N]`, over the text's tokens
    attention: np.ndarray  # `[K, L, M]`, of `[cls]`, mean over heads; its scale `[K, L]`
    attention_scale: np.ndarray
    slot_attention: np.ndarray  # `[K, L, V]`
    # margin, log_likelihood: `[K]`, as in the causal test.
    margin: np.ndarray
    log_likelihood: np.ndarray
    distance: np.ndarray | None  # `[K, L, V, M]`, from every prompt to the patches; scale and lowest `[K, L, V]`
    distance_scale: np.ndarray | None
    distance_lowest: np.ndarray | None
    texts: int  # of each class
    # tokens, kinds: by class, of the text up to but without EOS.
    tokens: dict[int, tuple[str, ...]]
    kinds: dict[int, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Images that a reader of the report chooses among."""

    images: np.ndarray  # `[K]`, numbers of the examples in the split
    pictures: np.ndarray  # uint8 `[K, S, S, 3]`, at most 224 pixels wide
    # `[P, 2]`: row of the image, 0 … K − 1, and class; its true one first, then those that models give it.
    pairs: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExploredModel | Missing]


@dataclasses.dataclass(frozen=True)
class TextAttention:
    """Fig. 4: the EOS row's attention by kind of token, averaged over classes."""

    shares: Average  # `[L, H, 6]`, kinds in the order of `TEXT_KINDS`
    count: int  # of texts
    texts: int  # of each class
    text: str  # with {} for the class name


@dataclasses.dataclass(frozen=True)
class AttentionVariant:
    """Attention distance in pixels, and entropies in nats, `[L, H]`.

    A tower without `[cls]` has no entropy of its query.
    """

    distance: Average
    entropy: Average
    cls_entropy: Average | None

    @property
    def quantities(self) -> dict[str, Average]:
        """Those that there are, by name."""
        return {name: quantity for name, quantity in vars(self).items() if isinstance(quantity, Average)}


@dataclasses.dataclass(frozen=True)
class VisionAttention:
    """Fig. 5: `clip` of a model without vision prompts, else `without_prompt` and `with_prompt`."""

    count: int
    clip: AttentionVariant | None
    without_prompt: AttentionVariant | None
    with_prompt: AttentionVariant | None
    no_cls_entropy: str | None  # why there is no entropy of the `[cls]` query

    @property
    def variants(self) -> dict[str, AttentionVariant]:
        """Those that there are, by name."""
        return {name: variant for name, variant in vars(self).items() if isinstance(variant, AttentionVariant)}


@dataclasses.dataclass(frozen=True)
class TowerDecomposition:
    """Eq. 12 in one tower; samples are images, or classes for text."""

    count: int
    depth: int  # layers with prompts of their own
    prompt_mass: Average  # `[L, H]`, attention on prompts, mean over input queries
    # `[L, H]`, the same as `prompt_mass` for the query that is pooled; `None` under a pooling head.
    pooled_mass: Average | None
    norm_share: Average  # `[L]`, the norm of the prompt part over the sum of both norms
    # `[L]`, the share of the prompt part's mean square that its average over samples explains, token by token,
    # corrected for chance: it may fall below 0.
    constancy: np.ndarray
    bias_likeness: np.ndarray  # `[L]`, the share that one vector for all tokens explains
    bias_cosine: dict[str, np.ndarray]  # `[L]` by bias model: between that vector and the learned bias


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Eq. 12 and Fig. 1, of the towers in which a model has prompts, by name."""

    towers: dict[str, TowerDecomposition]


@dataclasses.dataclass(frozen=True)
class PromptWords:
    """The vocabulary's tokens nearest to a learned text prompt, nearest first."""

    prompt: int
    class_name: str | None  # of a context of one class
    words: tuple[str, ...]  # readable tokens
    distances: tuple[float, ...]  # Euclidean
    mean_distance: float  # to the whole vocabulary


@dataclasses.dataclass(frozen=True)
class ModelWords:
    """The words of a model's prompts."""

    prompts: tuple[PromptWords, ...]


class Outcome(enum.Enum):
    """Whether a claim holds: by the whole interval (`explain.observations`)."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Observation:
    """A claim of the paper about one method, over all its seeds."""

    source: str  # where it stands in the paper, such as "Fig. 2"
    claim: str  # in one line
    method: str  # its label; "Zero-shot" where the claim is about the frozen model
    statistic: str  # what the number is, in words
    unit: str  # "points", "%", or "" of a correlation
    number: Estimate | None  # with its interval; `None` where nothing was measured
    samples: int  # images or classes that it is a mean over; of several seeds the fewest
    outcome: Outcome  # by the rule


@dataclasses.dataclass(frozen=True)
class ObservedModel:
    """What observations are made of: float32, a row for each of `n` images or `C` classes; NaN where none was read."""

    # `[n, 2, 5]`, zero-shot's and the model's shares of the text's relevancy by `TEXT_KINDS[:5]`.
    text_relevancy: np.ndarray | None = None
    patch_variation: np.ndarray | None = None  # `[n]`, total variation between both models' relevancy of patches
    # `[C, 6]`, by `TEXT_KINDS`, a mean over layers, heads and the texts of a class.
    eos_attention: np.ndarray | None = None
    # distance, entropy: `[n, L]`, among input tokens, renormalised there, a mean over heads.
    distance: np.ndarray | None = None
    entropy: np.ndarray | None = None
    # `[n]`, rank correlation between attention of `[cls]` and nearness to prompts, a mean over layers.
    nearness: np.ndarray | None = None
    # `[n]`, total variation between both models' attention of `[cls]` to patches, a mean over layers.
    cls_variation: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Observations:
    """By model what was measured, and a row for each claim and method."""

    models: dict[str, ObservedModel]
    rows: tuple[Observation, ...]


@dataclasses.dataclass(frozen=True)
class ReplacementResults:
    """All replacements of a study: by model, and by method over its seeds."""

    models: dict[str, ModelReplacements | Missing]
    methods: tuple[MethodReplacements, ...]


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


def same_but_for_seed(models: Sequence[T]) -> list[list[T]]:
    """Models by method, options and training set, in the order in which they come."""
    groups: dict[tuple[str, str, str | None], list[T]] = {}
    for model in models:
        facts: Any = model  # of a study (`Model`), or of its results (`ModelFacts`)
        settings = facts.method, json.dumps(facts.options, sort_keys=True), facts.trained_on
        groups.setdefault(settings, []).append(model)
    return list(groups.values())
