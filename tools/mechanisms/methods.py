"""Methods of the benchmark, as a user would write them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.rank import linear_network
from clipbias.checks import Choices, Range
from clipbias.clip import Adaptation, Clip, LayerView
from clipbias.clip.layers import layer_norm
from clipbias.clip.params import Params
from clipbias.clip.vision import encode_image
from clipbias.tuning import CONSTANTS, Classifier, Learnables, Method, Task
from clipbias.tuning.method import Depth
from clipbias.tuning.methods.bias_by_kind import BiasByKind

Count = Annotated[int, Range(1, 1000)]
MAP = ("vision_down", "vision_up")
BIAS = "vision_bias"
MEAN = "mean"
READER = "reader"
PARTS = ("queries", "values", "out", "block", "start")


@dataclasses.dataclass(frozen=True)
class Constant(Method):
    """Adds a vector per block and tower, the same for every token and image.

    Attributes:
      part: the place: "queries", "values", the output of attention ("out") or of the "block"; or the tokens before the
        first block ("start").
      blocks: number of last blocks with a vector. Default: all.
    """

    part: Annotated[str, Choices(PARTS)] = "block"
    blocks: Depth = None

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        towers = {"vision": clip.config.vision, "text": clip.config.text}
        count = 1 if self.part == "start" else self.blocks
        return {f"{name}_vectors": jnp.zeros((count or tower.layers, tower.width)) for name, tower in towers.items()}

    def adapt(self, learnables: Learnables) -> Adaptation:
        config = self.clip_config
        vision, text = (learnables[f"{name}_vectors"] for name in ("vision", "text"))
        if self.part == "start":
            # Behind the vision tower's first LayerNorm; a text tower has none, and each token has one position.
            positions = jnp.tile(text, (config.text.context_length, 1))
            return Adaptation(
                vision_weights={"pre_norm": {"bias": vision[0]}}, text_weights={"position_embedding": positions}
            )
        vision, text = (
            jnp.pad(vectors, ((tower.layers - len(vectors), 0), (0, 0)))
            for vectors, tower in ((vision, config.vision), (text, config.text))
        )
        if self.part == "block":
            return Adaptation(vision_bias=vision, text_bias=text)
        return Adaptation(vision_weights=self._change(vision), text_weights=self._change(text))

    def _change(self, vectors: jax.Array) -> Params:
        if self.part == "out":
            return {"layers": {"out": {"bias": vectors}}}
        # One bias holds those of queries, keys and values; the other two stay.
        place = 2 * vectors.shape[1] * (self.part == "values")
        bias = jnp.pad(vectors, ((0, 0), (place, 2 * vectors.shape[1] - place)))
        return {"layers": {"qkv": {"bias": bias}}}


@dataclasses.dataclass(frozen=True)
class PositionBias(Method):
    """Adds a vector for each patch position behind every vision block; their mean over patches is 0, `[cls]` gets none.

    Attributes:
      patch: the only patch with a vector, which is then not centred. Default: all.
    """

    patch: Annotated[int, Range(0, 10000)] | None = None

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        return {"vision_positions": jnp.zeros((vision.layers, vision.tokens, vision.width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        patches = learnables["vision_positions"][:, 1:]
        if self.patch is None:
            patches = patches - patches.mean(1, keepdims=True)
        else:
            patches = patches * (jnp.arange(patches.shape[1]) == self.patch)[:, None]
        return Adaptation(vision_bias=jnp.pad(patches, ((0, 0), (1, 0), (0, 0))))


@dataclasses.dataclass(frozen=True)
class UnreadMap(BiasByKind):
    """Bias tuning by token type, beside a fixed random map that nothing reads.

    Behind each vision block the map adds `(LN1(x) · r) 1` to its input token `x`. Every later LayerNorm removes the
    direction of all ones. Biases start at 0, so that the untrained method has the map alone.
    """

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        # A constant, since its gradients are rounding errors, which Adam would scale up to whole steps.
        reader = jax.random.normal(rng, (vision.layers, vision.width, 1)) / vision.width**0.5
        return {**super().init(rng, clip, class_names), CONSTANTS: {READER: reader}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        biases = super().adapt({name: value for name, value in learnables.items() if name != CONSTANTS})
        reader = learnables[CONSTANTS][READER]
        return dataclasses.replace(
            biases, vision_adapters=linear_network(reader, jnp.ones(reader.swapaxes(1, 2).shape))
        )


@dataclasses.dataclass(frozen=True)
class CentredMap(Method):
    """Behind each vision block, adds `(LN1(x) − μ) D U` to its input token `x`; `μ` is a mean by layer and token type.

    `centre` sets `μ` to the mean over training images of the tuned run's own tokens, so that the added vectors have
    mean 0 by layer and type.

    Attributes:
      rank: of `D U`.
      share: the map's part of the squared norm of the addition; the rest is a bias by token type. `centre` brings both
        to it.
    """

    rank: Count = 2
    share: Annotated[float, Range(0.01, 1)] = 1.0

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        means = jnp.zeros((vision.layers, vision.token_types, vision.width))
        down = jax.random.normal(rng, (vision.layers, vision.width, self.rank)) / vision.width**0.5
        maps = dict(zip(MAP, (down, jnp.zeros((vision.layers, self.rank, vision.width))), strict=True))
        return {**maps, **({BIAS: means} if self.share < 1 else {}), CONSTANTS: {MEAN: means}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        down, up = (learnables[name] for name in MAP)
        bias = -(learnables[CONSTANTS][MEAN] @ down @ up)
        if BIAS in learnables:
            bias += learnables[BIAS]
        return Adaptation(vision_adapters=linear_network(down, up), vision_bias=bias)


@dataclasses.dataclass(frozen=True)
class MarkReader(Method):
    """Tunes the patch embedding, through which a mark is seen, and a network of one hidden layer beside each block."""

    width: Count = 32

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        down = jax.random.normal(rng, (vision.layers, vision.width, self.width)) / vision.width**0.5
        return {
            "vision_patches": jnp.zeros(clip.params["vision"]["patch_embedding"].shape),
            "vision_networks": {"down": _dense(down), "up": _dense(jnp.zeros(down.swapaxes(1, 2).shape))},
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        changes = {"patch_embedding": learnables["vision_patches"]}
        return Adaptation(vision_adapters=learnables["vision_networks"], vision_weights=changes)


def _dense(kernel: jax.Array) -> dict[str, jax.Array]:
    return {"kernel": kernel, "bias": jnp.zeros((len(kernel), kernel.shape[-1]))}


def centre(task: Task, learnables: Learnables, images: np.ndarray) -> dict[str, Any]:
    """Returns learnables of a `CentredMap` whose map has mean 0 over images, by layer and token type; in float64.

    With a bias, the map is scaled up as the bias is scaled down, or the other way round, until the map has its `share`.

    Args:
      task: of the method.
      learnables: of one run.
      images: normalised, `[B, R, R, 3]`.
    """
    method = task.method
    assert isinstance(method, CentredMap)
    centred: dict[str, Any] = jax.tree.map(np.array, dict(learnables))
    # Layer after layer, since the mean of one changes the tokens of the next.
    for layer in range(task.clip.config.vision.layers):
        tokens = map_inputs(task, centred, images)[layer]
        mean = np.stack([kind.mean((0, 1)) for kind in by_kind(tokens)])
        centred[CONSTANTS][MEAN][layer] = mean
        if BIAS in centred:
            share = method.share
            of_map, of_bias = squares(centred, tokens, layer)
            # Both factors act on norms, of which these are the squares.
            factor = (share / (1 - share) * of_bias / of_map) ** 0.25 if of_map else 0.0
            if factor > 0:
                centred[MAP[1]][layer] *= factor
                centred[BIAS][layer] /= factor
    return centred


def squares(learnables: Learnables, tokens: np.ndarray, layer: int) -> tuple[float, float]:
    """Computes the mean squared norms of the map's and the bias's additions in a layer; token types count alike.

    Args:
      learnables: of a `CentredMap` with a bias.
      tokens: `map_inputs` of the layer.
      layer: its number.
    """
    down, up, bias = (np.asarray(learnables[name][layer], np.float64) for name in (*MAP, BIAS))
    mean = learnables[CONSTANTS][MEAN][layer]
    of_map = [np.square((kind - mean[k]) @ down @ up).sum(-1).mean() for k, kind in enumerate(by_kind(tokens))]
    return float(np.mean(of_map)), float(np.square(bias).sum(-1).mean())


def by_kind(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits `[B, N, D]` into `[cls]` and patches."""
    return tokens[:, :1], tokens[:, 1:]


def map_inputs(task: Task, learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """Returns the inputs of the maps in a tuned run, `LN1(x)`: `[L, B, N, D]`, float64."""
    return np.asarray(_map_inputs(task.classifier, task.clip.params, learnables, images), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _map_inputs(classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
    epsilon = classifier.config.vision.layer_norm_epsilon

    def observe(view: LayerView) -> jax.Array:
        return layer_norm(view.tokens, view.weights["norm1"], epsilon)

    with jax.default_matmul_precision("highest"):
        adaptation = classifier.method.adapt(learnables)
        return encode_image(params, classifier.config, images, adaptation, observe=observe)[1]
