"""Methods of the benchmark, as a user would write them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip, LayerView
from clipbias.clip.layers import layer_norm
from clipbias.clip.params import Params
from clipbias.clip.vision import encode_image
from clipbias.tuning import CONSTANTS, Classifier, Learnables, Method, Task
from clipbias.tuning.methods.bias import BiasTuning

Count = Annotated[int, Range(1, 1000)]
MAP = ("vision_down", "vision_up")
BIAS = "vision_bias"
MEAN = "mean"
RATIO = 1.0  # norm of the map over that of the bias, in every layer


@dataclasses.dataclass(frozen=True)
class LateBias(BiasTuning):
    """Bias tuning in the last blocks alone. With one block it acts behind the last attention."""

    blocks: Count = 1

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        biases = super().init(rng, clip, class_names)
        masks = {name: jnp.zeros(len(bias)).at[-self.blocks :].set(1) for name, bias in biases.items()}
        return {**biases, CONSTANTS: masks}

    def adapt(self, learnables: Learnables) -> Adaptation:
        masks = learnables[CONSTANTS]
        return Adaptation(**{name: mask[:, None] * learnables[name] for name, mask in masks.items()})


@dataclasses.dataclass(frozen=True)
class PositionBias(Method):
    """A bias for each patch position of every vision block, whose mean over patches is 0; `[cls]` gets none."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        return {"vision_positions": jnp.zeros((vision.layers, vision.tokens, vision.width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        patches = learnables["vision_positions"][:, 1:]
        centred = patches - patches.mean(1, keepdims=True)
        return Adaptation(vision_bias=jnp.pad(centred, ((0, 0), (1, 0), (0, 0))))


@dataclasses.dataclass(frozen=True)
class QueryBias(Method):
    """Changes of the biases of all queries, in both towers, and of nothing else."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        towers = {"vision": clip.config.vision, "text": clip.config.text}
        return {f"{name}_queries": jnp.zeros((tower.layers, tower.width)) for name, tower in towers.items()}

    def adapt(self, learnables: Learnables) -> Adaptation:
        def changes(queries: jax.Array) -> Params:
            # Of keys and values none.
            return {"layers": {"qkv": {"bias": jnp.pad(queries, ((0, 0), (0, 2 * queries.shape[1])))}}}

        return Adaptation(
            vision_weights=changes(learnables["vision_queries"]), text_weights=changes(learnables["text_queries"])
        )


@dataclasses.dataclass(frozen=True)
class CentredMap(Method):
    """After each vision block, adds `(LN1(x) − μ) D U` to its input token `x`, with `μ` a mean by layer and kind.

    `centre` sets `μ` to the mean over training images of the tuned run's own tokens, so that what is added has mean 0
    by layer and kind. The network beside a block makes the linear map of two ReLUs: `z = relu(z) − relu(−z)`.

    Attributes:
      rank: of `D U`.
      bias: whether a bias by kind is added too; `centre` then brings both to the ratio `RATIO`.
    """

    rank: Count = 2
    bias: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        means = jnp.zeros((vision.layers, vision.token_types, vision.width))
        down = jax.random.normal(rng, (vision.layers, vision.width, self.rank)) / vision.width**0.5
        maps = dict(zip(MAP, (down, jnp.zeros((vision.layers, self.rank, vision.width))), strict=True))
        return {**maps, **({BIAS: means} if self.bias else {}), CONSTANTS: {MEAN: means}}

    def adapt(self, learnables: Learnables) -> Adaptation:
        down, up = (learnables[name] for name in MAP)
        network = {
            "down": _dense(jnp.concatenate([down, -down], axis=-1)),
            "up": _dense(jnp.concatenate([up, -up], axis=1)),
        }
        bias = -(learnables[CONSTANTS][MEAN] @ down @ up)
        return Adaptation(vision_adapters=network, vision_bias=bias + learnables[BIAS] if self.bias else bias)


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
    """The learnables of a `CentredMap` whose map has mean 0 over images, by layer and kind; in float64.

    Layer after layer, since the mean of one changes the tokens of the next. With a bias, the map is scaled up as the
    bias is scaled down, or the other way round, until their norms have the ratio `RATIO`.

    Args:
      task: of the method.
      learnables: of one run.
      images: normalised, `[B, R, R, 3]`.
    """
    centred: dict[str, Any] = jax.tree.map(np.array, dict(learnables))
    for layer in range(task.clip.config.vision.layers):
        tokens = map_inputs(task, centred, images)[layer]
        mean = np.stack([kind.mean((0, 1)) for kind in by_kind(tokens)])
        centred[CONSTANTS][MEAN][layer] = mean
        if BIAS in centred:
            factor = np.sqrt(RATIO * norms(centred, tokens, layer)[1] / norms(centred, tokens, layer)[0])
            if np.isfinite(factor) and factor > 0:  # neither is zero
                centred[MAP[1]][layer] *= factor
                centred[BIAS][layer] /= factor
    return centred


def norms(learnables: Learnables, tokens: np.ndarray, layer: int) -> tuple[float, float]:
    """Root mean squares of what the map and the bias add in a layer, kinds of token counting alike.

    Args:
      learnables: of a `CentredMap` with a bias.
      tokens: `map_inputs` of the layer.
      layer: its number.
    """
    down, up = (np.asarray(learnables[name][layer], np.float64) for name in MAP)
    mean = learnables[CONSTANTS][MEAN][layer]
    squares = [np.square((kind - mean[k]) @ down @ up).sum(-1).mean() for k, kind in enumerate(by_kind(tokens))]
    bias = np.square(np.asarray(learnables[BIAS][layer], np.float64)).sum(-1)
    return float(np.sqrt(np.mean(squares))), float(np.sqrt(bias.mean()))


def by_kind(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[cls]` and patches of `[B, N, D]`."""
    return tokens[:, :1], tokens[:, 1:]


def map_inputs(task: Task, learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """What the maps see in a tuned run, `LN1(x)`: `[L, B, N, D]`, float64."""
    return np.asarray(_map_inputs(task.classifier, task.clip.params, learnables, images), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _map_inputs(classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
    epsilon = classifier.config.vision.layer_norm_epsilon

    def observe(view: LayerView) -> jax.Array:
        return layer_norm(view.tokens, view.weights["norm1"], epsilon)

    with jax.default_matmul_precision("highest"):
        adaptation = classifier.method.adapt(learnables)
        return encode_image(params, classifier.config, images, adaptation, observe=observe)[1]
