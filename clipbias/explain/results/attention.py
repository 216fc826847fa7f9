"""Attention, its decomposition by source, and the words of prompts."""

import dataclasses

import numpy as np

from clipbias.explain.results.facts import Average, SampledAverage


@dataclasses.dataclass(frozen=True)
class TextAttention:
    """Fig. 4: the EOS row's attention by kind of token, averaged over classes.

    Attributes:
      shares: `[L, H, 6]`, kinds in the order of `TEXT_KINDS`.
      count: of texts.
      texts: of each class.
      text: with {} for the class name.
    """

    shares: Average
    count: int
    texts: int
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
class TowerDecomposition:
    """Eq. 12 in one tower; samples are images, or classes for text.

    Attributes:
      depth: layers with prompts of their own.
      prompt_mass: `[L, H]`, attention on prompts, mean over input queries; of each sample over layers and heads too.
      pooled_mass: `[L, H]`, the same as `prompt_mass` for the query that is pooled; `None` under a pooling head.
      norm_share: `[L]`, the norm of the prompt part over the sum of both norms.
      constancy: `[L]`, the share of the prompt part's mean square that its average over samples explains, token by
        token, corrected for chance: it may fall below 0.
      bias_likeness: `[L]`, the share that one vector for all tokens explains.
      bias_cosine: `[L]` by bias model: between that vector and the learned bias.
    """

    count: int
    depth: int
    prompt_mass: SampledAverage
    pooled_mass: Average | None
    norm_share: Average
    constancy: np.ndarray
    bias_likeness: np.ndarray
    bias_cosine: dict[str, np.ndarray]


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
class PromptWords:
    """The vocabulary's tokens nearest to a learned text prompt, nearest first.

    Attributes:
      class_name: of a context of one class.
      words: readable tokens.
      distances: Euclidean.
      mean_distance: to the whole vocabulary.
    """

    prompt: int
    class_name: str | None
    ids: tuple[int, ...]
    words: tuple[str, ...]
    distances: tuple[float, ...]
    mean_distance: float


@dataclasses.dataclass(frozen=True)
class ModelWords:
    """The words of a model's prompts."""

    prompts: tuple[PromptWords, ...]
