"""PLOT and PLOT++ (Chen et al. 2023, arXiv 2210.01253): several contexts, matched with an image by optimal transport.

The authors' code of PLOT matches positions of a ResNet; here they are patches of the last block. PLOT++ is theirs for
vision transformers: it matches the features that several vision prompts give.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Choices
from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, unit_length
from clipbias.tuning.method import CONSTANTS, Kind, Learnables, Method, Preset, PromptText, Tokens
from clipbias.tuning.prompts import ContextSets, random_prompts, word_ids
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName

ENTROPY = 0.1
MAX_ITERATIONS = 100
SINKHORN_TOLERANCE = 1e-2


def transport_logits(features: Features, image: jax.Array, *, pooled: bool) -> jax.Array:
    """`s Σ_mp Π_mp S_mp`, `S = F Gᵀ`, for every pair of an image and a class: `[B, C]`.

    `Π` is the transport plan between the `m` features of the image, `image [B, m, d]`, and the `P` features of the
    class, with equal weights, the cost `1 - S` and entropy 0.1. If `pooled`, the cosine of the image's feature and the
    mean of the raw text features is added.
    """
    # The plan is a constant of the gradient, as in the authors' code: no gradient passes through the iterations.
    similarity = jnp.einsum("bmd,pcd->bcmp", unit_length(image), unit_length(features.text))
    kernel = jnp.exp(-(1 - jax.lax.stop_gradient(similarity)) / ENTROPY)
    logits = features.scale * (sinkhorn(kernel, features.mask) * similarity).sum((-2, -1))
    if pooled:
        logits += features.scale * unit_length(features.image) @ unit_length(features.text.mean(0)).T
    return logits


def sinkhorn(kernel: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`Π = diag(r) K diag(c)` with rows that sum to `1/m` and columns that sum to `1/P`: `[B, C, m, P]`.

    An iteration sets `r ← (1/m) / (K c)`, then `c ← (1/P) / (Kᵀ r)`. It stops for all pairs of the batch together, as
    in the authors' code: after 100 iterations, or once the mean of `|r - r_before|` over all pairs is below 0.01.
    """
    batch, classes, m, prompts = kernel.shape
    # Rows that only fill the batch must not decide when the iterations of the images end.
    weights = jnp.ones(batch) if mask is None else mask.astype(kernel.dtype)
    total = jnp.maximum(weights.sum(), 1) * classes * m

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        _, _, iteration, change = state
        # `~(<)`, not `>=`: the iterations continue while the change is NaN, as the authors' `if err < thresh: break`.
        return (iteration < MAX_ITERATIONS) & ~(change < SINKHORN_TOLERANCE)

    def iterate(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # Rows before columns, from `r = c = 1`: the plan's column sums are exact, its row sums within the tolerance.
        before, columns, iteration, _ = state
        rows = 1 / m / jnp.einsum("bcmp,bcp->bcm", kernel, columns)
        columns = 1 / prompts / jnp.einsum("bcmp,bcm->bcp", kernel, rows)
        change = (weights * jnp.abs(rows - before).sum((1, 2))).sum() / total
        return rows, columns, iteration + 1, change

    start: tuple[jax.Array, ...] = (
        jnp.ones((batch, classes, m)),
        jnp.ones((batch, classes, prompts)),
        jnp.zeros((), int),
        jnp.full((), jnp.inf),
    )
    with jax.default_matmul_precision("highest"):
        rows, columns, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    return rows[..., None] * kernel * columns[..., None, :]


@dataclasses.dataclass(frozen=True)
class PLOT(ContextSets):
    """Learns `P` contexts `[P, T, Dt]` for all classes, from N(0, 0.02), each a text with every class name.

    The logits come from optimal transport between the features of an image's patches and a class's `P` texts. Its
    iterations end for the whole batch, so the last digits of an image's logits depend on the other images there.

    Attributes:
      tokens, sets: `T` and `P`.
      pooled: adds the cosine of the image's feature and the mean of the raw text features, as the authors do on
        ImageNet.
      recipe: "common", or "authors" for 50 epochs at 0.002 with 128 images a step.
    """

    presets = {"plot": Preset("PLOT", order=140)}
    datasets = {"imagenet": {"pooled": True}}
    authors = Recipe(learning_rate=0.002, epochs=50, batch_size=128)
    patches = True

    pooled: bool = False
    recipe: RecipeName = COMMON

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.patches is not None
        return transport_logits(features, features.patches, pooled=self.pooled)


VISION = "vision"
JOINT = "joint"

# The authors' phrases for each dataset.
PHRASES = {
    "imagenet": ("a photo of a", "this is a photo", "this is a", "one picture of a"),
    "dtd": ("a photo of a texture", "this is a photo texture", "this is a picture texture", "one picture of a texture"),
    "eurosat": (
        "a centered satellite photo of",
        "a centered satellite picture of",
        "this is centered satellite photo of",
        "one centered satellite photo of a",
    ),
    "fgvc_aircraft": (
        "a photo of an aircraft",
        "a picture of an aircraft",
        "this is aircraft picture of",
        "one picture of an aircraft",
    ),
    "food101": ("a photo of a food", "this is a food photo", "this is food picture of", "one picture of a food"),
    "oxford_flowers": (
        "a photo of a flower",
        "one picture of a flower",
        "this is flower picture of",
        "one picture of a flower",
    ),
    "oxford_pets": ("a photo of a pet", "one picture of a pet", "this is pet picture of", "one picture of a pet"),
    "ucf101": (
        "a photo of a person doing",
        "this is a photo people doing",
        "this is picture of people doing",
        "one picture of a person doing",
    ),
}


@dataclasses.dataclass(frozen=True)
class PLOTPlusPlus(Method):
    """Learns `P` contexts `[P, n, Dt]`, which start as phrases, and `P` sets of vision prompts `[P, 1, V, Dv]`.

    The vision tower runs once for each set of prompts, at its input. The logits come from optimal transport between an
    image's `P` features and a class's `P` texts. The first stage of training keeps the contexts fixed, and adds the
    cosine of the mean raw image feature and the mean raw text feature to the logits. The second learns everything.

    Attributes:
      phrases: the words before the class names, one phrase per context. `n` is the number of words of the first phrase.
        In a phrase with more tokens the other tokens stay fixed; "X" fills up a phrase with fewer. By default the
        authors' phrases for a dataset of the catalogue, and those of Caltech101 for others.
      vision_tokens: `V`.
      stage: "vision" is the method of the first stage, "joint" that of the second, which is evaluated.
      recipe: "common", or "authors" for 50 epochs per stage at 0.002 with 32 images a step.
    """

    presets = {"plot_plus_plus": Preset("PLOT++", order=330)}
    kind = Kind.PROMPTS
    datasets = {name: {"phrases": phrases} for name, phrases in PHRASES.items()}
    authors = Recipe(learning_rate=0.002, epochs=50, batch_size=32)

    phrases: tuple[str, ...] = ("a photo of a", "this is a photo", "this is picture of", "one picture of a")
    vision_tokens: Tokens = 2
    stage: Annotated[str, Choices((VISION, JOINT))] = JOINT
    recipe: RecipeName = COMMON

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(phrase.strip() for phrase in self.phrases or ("",)):
            raise ClipbiasError("PLOT++ needs at least one phrase, and none may be empty; give some as phrases.")

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        table = jnp.asarray(clip.params["text"]["token_embedding"])
        ids = [word_ids(text, clip)[: self._count] for text in self._texts(clip)]
        context = {"text_context": table[jnp.asarray(ids)].astype(jnp.float32)}
        prompts = random_prompts(rng, len(self.phrases), 1, self.vision_tokens, clip.config.vision.width)
        if self.stage == JOINT:
            return {"vision_prompts": prompts, **context}
        # In the first stage contexts are constants: stored beside the prompts, and no step changes them.
        return {"vision_prompts": prompts, CONSTANTS: context}

    @property
    def _count(self) -> int:
        return len(self.phrases[0].split())

    def _texts(self, clip: Clip) -> list[str]:
        # "X" fills up a phrase with fewer tokens than the context has. In the authors' code its last context row
        # overwrites the first token of the class name.
        missing = [max(0, self._count - len(word_ids(phrase, clip))) for phrase in self.phrases]
        return [phrase + " X" * count for phrase, count in zip(self.phrases, missing, strict=True)]

    def adapt(self, learnables: Learnables) -> Adaptation:
        # In the first stage contexts are the words of the texts, so that their features are computed once.
        return Adaptation(
            text_context=learnables["text_context"] if self.stage == JOINT else None,
            vision_prompts=learnables["vision_prompts"],
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(tuple(f"{text} {{}}." for text in self._texts(clip)), context_tokens=self._count)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        assert features.views is not None
        return transport_logits(features, features.views, pooled=self.stage == VISION)

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        # Each has the whole recipe, as the authors' two runs of their program have it.
        return ((dataclasses.replace(self, stage=VISION), recipe), (self, recipe))

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        context = {**learnables, **learnables.get(CONSTANTS, {})}["text_context"]
        prompts = learnables["vision_prompts"]
        if stage == 0:
            return {"vision_prompts": prompts, CONSTANTS: {"text_context": context}}
        return {"vision_prompts": prompts, "text_context": context}
