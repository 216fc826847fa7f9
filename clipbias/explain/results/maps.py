"""Relevancy, attention, decomposition, faithfulness, and the maps of single pictures."""

import dataclasses

import numpy as np

from clipbias.explain.results.facts import Average, Missing

VISION_KINDS = ("patches", "prompts")
GROUPS = ("corrected", "both_right", "all")
TEXT_KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")


@dataclasses.dataclass(frozen=True)
class SampledAverage:
    """A mean over samples with its standard error, and a number of each sample `[n]`; NaN where it was not read."""

    mean: np.ndarray
    standard_error: np.ndarray
    each: np.ndarray

    @property
    def average(self) -> Average:
        return Average(self.mean, self.standard_error)


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

    normalisation: str
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
class TextAttention:
    """Fig. 4: the EOS row's attention by kind of token, averaged over classes.

    Attributes:
      shares: `[L, H, 6]`, kinds in the order of `TEXT_KINDS`.
      count: of texts.
      texts: of each class.
      reduction: over the tokens of a kind: "sum" or "mean".
      text: with {} for the class name.
    """

    shares: Average
    count: int
    texts: int
    reduction: str
    text: str


@dataclasses.dataclass(frozen=True)
class AttentionVariant:
    """Attention distance in pixels, and entropies in nats, `[L, H]`.

    A tower without `[cls]` has no entropy of its query.
    """

    distance: SampledAverage
    entropy: SampledAverage
    cls_entropy: SampledAverage | None

    @property
    def quantities(self) -> dict[str, SampledAverage]:
        """Those that there are, by name."""
        quantities = {"distance": self.distance, "entropy": self.entropy, "cls_entropy": self.cls_entropy}
        return {name: quantity for name, quantity in quantities.items() if quantity is not None}


@dataclasses.dataclass(frozen=True)
class VisionAttention:
    """Fig. 5: `clip` of a model without vision prompts, else `without_prompt` and `with_prompt`.

    Attributes:
      no_cls_entropy: why there is no entropy of the `[cls]` query.
    """

    count: int
    clip: AttentionVariant | None
    without_prompt: AttentionVariant | None
    with_prompt: AttentionVariant | None
    no_cls_entropy: str | None

    @property
    def variants(self) -> dict[str, AttentionVariant]:
        """Those that there are, by name."""
        variants = {"clip": self.clip, "without_prompt": self.without_prompt, "with_prompt": self.with_prompt}
        return {name: variant for name, variant in variants.items() if variant is not None}


@dataclasses.dataclass(frozen=True)
class SimilarityMaps:
    """Maps `[K, S, R, R]` in 0 … 1 of one tuned model.

    Attributes:
      prompts: 1 minus the min-max of the distance to the prompts.
      rank_correlation: `[L]` between the last two, over the dataset.
      prompt: its number; `None` is the mean over the prompts.
    """

    zero_shot_cls: np.ndarray
    cls: np.ndarray
    prompts: np.ndarray
    rank_correlation: Average
    count: int
    prompt: int | None


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
class DepthMeans:
    """Means over the layers that have prompts of their own, and over those beyond; `None` where there are none."""

    up_to_depth: float | None
    beyond: float | None


@dataclasses.dataclass(frozen=True)
class LayerErrors:
    """Standard errors of what `TowerDecomposition` has by layer (`jackknife`): `[L]` each."""

    constancy: np.ndarray
    bias_likeness: np.ndarray
    bias_cosine: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class MeanErrors:
    """Standard errors of the means over the layers up to the depth, and of cosines' means over all layers."""

    constancy: float
    bias_likeness: float
    bias_cosine: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TowerDecomposition:
    """Eq. 12 in one tower; samples are images, or classes for text.

    Attributes:
      depth: layers with prompts of their own.
      runs: texts of a class, or passes over an image, over whose constancies the mean is taken.
      prompt_mass: `[L, H]`, attention on prompts, mean over input queries; of each sample over layers and heads too.
      pooled_mass: `[L, H]`, the same as `prompt_mass` for the query that is pooled; `None` under a pooling head.
      mass_by_query: `[L, H, N]`.
      norm_share: `[L]`, the norm of the prompt part over the sum of both norms.
      constancy: `[L]`, the share of the prompt part's mean square that its average over samples explains, token by
        token, corrected for chance: it may fall below 0.
      bias_likeness: `[L]`, the share that one vector for all tokens explains.
      bias_cosine: `[L]` by bias model: between that vector and the learned bias.
      error, mean_error: standard errors; `None` of several runs.
    """

    count: int
    depth: int
    runs: int
    prompt_mass: SampledAverage
    pooled_mass: Average | None
    mass_by_query: Average
    norm_share: Average
    constancy: np.ndarray
    bias_likeness: np.ndarray
    bias_cosine: dict[str, np.ndarray]
    mean_constancy: DepthMeans
    mean_bias_likeness: DepthMeans
    error: LayerErrors | None
    mean_error: MeanErrors | None


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Eq. 12 and Fig. 1, of the towers in which a model has prompts."""

    vision: TowerDecomposition | None
    text: TowerDecomposition | None

    @property
    def towers(self) -> dict[str, TowerDecomposition]:
        """Those that there are, by name."""
        towers = {"vision": self.vision, "text": self.text}
        return {name: tower for name, tower in towers.items() if tower is not None}


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
      prompt_share_from: `[P, L]`, of the row, on vision prompts, if only this layer and those after it count.
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
    prompt_share_from: np.ndarray
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
class PromptWords:
    """The vocabulary's tokens nearest to a learned text prompt, nearest first.

    Attributes:
      layer: 0 in the space of token embeddings, others in that of the layer's input (`words`).
      class_name: of a context of one class.
      words: readable tokens.
      distances: Euclidean.
      mean_distance: to the whole vocabulary.
    """

    layer: int
    prompt: int
    class_name: str | None
    ids: tuple[int, ...]
    words: tuple[str, ...]
    distances: tuple[float, ...]
    mean_distance: float


@dataclasses.dataclass(frozen=True)
class ModelWords:
    """The words of a model's prompts; `remark` says why deeper ones have none."""

    prompts: tuple[PromptWords, ...]
    remark: str | None


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
