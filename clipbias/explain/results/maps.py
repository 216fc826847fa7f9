"""Relevancy, similarity, faithfulness, and the maps of single pictures."""

import dataclasses

import numpy as np

from clipbias.explain.results.facts import Average, Missing

VISION_KINDS = ("patches", "prompts")
GROUPS = ("corrected", "both_right", "all")
MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")


@dataclasses.dataclass(frozen=True)
class BothModels:
    """Zero-shot's row and the tuned model's over the same samples."""

    zero_shot: Average
    tuned: Average


@dataclasses.dataclass(frozen=True)
class RelevancyGroup:
    """Relevancy for the true class over one group of images.

    Attributes:
      vision: `[M + V]`: patches row by row, then prompts (zero-shot: `V = 0`).
      text: `[N]` by token index, 0 after the text's end; several texts of a class are added up by token index.
      vision_kinds, text_kinds: sums by `VISION_KINDS` `[2]`, by `TEXT_KINDS[:5]` `[5]`.
      order, variation: `[1]`, rank correlation and total variation between the two models' rows over the patches.
    """

    count: int
    vision: BothModels
    text: BothModels
    vision_kinds: BothModels
    text_kinds: BothModels
    order: Average
    variation: Average


@dataclasses.dataclass(frozen=True)
class RelevancyText:
    """The text that a model's relevancy was computed with.

    Attributes:
      texts: of each class.
      index_kinds: the kind of the token at each index, "" where it differs by class.
    """

    text: str
    texts: int
    index_kinds: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Relevancy:
    """Relevancy over the groups of `GROUPS`; a group without images is `None`.

    Attributes:
      corrected: images that zero-shot gets wrong and the tuned model right.
      both_right: the control.
    """

    zero_shot: RelevancyText
    tuned: RelevancyText
    corrected: RelevancyGroup | None
    both_right: RelevancyGroup | None
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
    """Maps `[K, S, R, R]` in 0 … 1 of one tuned model.

    Attributes:
      prompts: 1 minus the min-max of the mean distance to the prompts.
      rank_correlation: `[L]` between the last two, over the dataset.
    """

    zero_shot_cls: np.ndarray
    cls: np.ndarray
    prompts: np.ndarray
    rank_correlation: Average
    count: int


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Fig. 6; `K` pictures are every example in every rotation. Pictures are `None` where no model has prompts.

    Attributes:
      images: uint8 `[K, R, R, 3]`.
      rotations: `[K]`, degrees.
      layers: `[S]`.
    """

    images: np.ndarray | None
    rotations: np.ndarray | None
    layers: np.ndarray | None
    models: dict[str, SimilarityMaps | Missing]


@dataclasses.dataclass(frozen=True)
class PerturbationCurve:
    """Accuracy while patches are removed, `[S]`, and the area under it."""

    accuracy: np.ndarray
    area: float


@dataclasses.dataclass(frozen=True)
class TargetCurves:
    """Of maps of the predicted and of the true class."""

    predicted: PerturbationCurve
    true: PerturbationCurve

    def __getitem__(self, target: str) -> PerturbationCurve:
        return {"predicted": self.predicted, "true": self.true}[target]


@dataclasses.dataclass(frozen=True)
class MapCurves:
    """`positive`: the most relevant patches go first; `negative`: the least relevant."""

    positive: TargetCurves
    negative: TargetCurves

    def __getitem__(self, direction: str) -> TargetCurves:
        return {"positive": self.positive, "negative": self.negative}[direction]


@dataclasses.dataclass(frozen=True)
class ModelFaithfulness:
    """The perturbation test of one model, by the maps of `MAPS`."""

    count: int
    maps: dict[str, MapCurves]


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """The perturbation test (Chefer et al. 2021); `fractions [S]` are shares of the patches removed."""

    fractions: np.ndarray
    models: dict[str, ModelFaithfulness | Missing]


@dataclasses.dataclass(frozen=True)
class ExampleMaps:
    """A model's maps of the examples, for the true class: `vision [K, M + V]`, `text [K, N]`, `logits [K, C]`.

    Attributes:
      tokens: of each picture's text, up to but without EOS; of several texts of a class the first is shown.
      texts: of each class.
    """

    vision: np.ndarray
    text: np.ndarray
    logits: np.ndarray
    tokens: tuple[tuple[str, ...], ...]
    texts: int


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures with their relevancy: uint8 `images [K, R, R, 3]`, `labels [K]`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExampleMaps | Missing]


@dataclasses.dataclass(frozen=True)
class ExploredModel:
    """A model's maps to explore. A map is uint8 with a scale: value = q · scale / 255 (+ lowest).

    Attributes:
      relevancy: `[P, M]`, over patches, of each pair of an image and a class; its scale `[P]`.
      relevancy_sum: `[P]`, of the row with its prompts.
      slot_relevancy: `[P, V]`.
      text: `[P, N]`, over the text's tokens.
      attention: `[K, L, M]`, of `[cls]`, mean over heads; its scale `[K, L]`.
      slot_attention: `[K, L, V]`.
      margin, log_likelihood: `[K]`, as in the causal test.
      distance: `[K, L, V, M]`, from every prompt to the patches; scale and lowest `[K, L, V]`.
      texts: of each class.
      tokens, kinds: by class, of the text up to but without EOS.
    """

    relevancy: np.ndarray
    relevancy_scale: np.ndarray
    relevancy_sum: np.ndarray
    slot_relevancy: np.ndarray
    text: np.ndarray
    attention: np.ndarray
    attention_scale: np.ndarray
    slot_attention: np.ndarray
    margin: np.ndarray
    log_likelihood: np.ndarray
    distance: np.ndarray | None
    distance_scale: np.ndarray | None
    distance_lowest: np.ndarray | None
    texts: int
    tokens: dict[int, tuple[str, ...]]
    kinds: dict[int, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Images that a reader of the report chooses among.

    Attributes:
      images: `[K]`, numbers of the examples in the split.
      pictures: uint8 `[K, S, S, 3]`, at most 224 pixels wide.
      pairs: `[P, 2]`: row of the image, 0 … K − 1, and class; its true one first, then those that models give it.
    """

    images: np.ndarray
    pictures: np.ndarray
    pairs: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExploredModel | Missing]
