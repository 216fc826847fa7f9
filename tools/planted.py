"""Tiny random vision towers in which it is known what makes prompts work, for the error rates of the causal test.

A token of width 24 stands for 12 numbers `u`, as `[u, −u]`: its mean is zero. The first is the same large number in
every token, so that LayerNorm, scaled back by it, is the identity to a thousandth. The first head of each layer does
what is planted. The second head and the MLPs are random and small: they make every effect a little other than zero.

Images show noisy evidence for one of two classes, `[cls]` collects it in one number, and the feature is that number
beside a constant. Every layer has two prompts of its own, which do one of these:

    attention    they raise a flag in [cls], by which the second layer attends to patches with better evidence
    scale        they take attention from patches that show noise
    constant     they take a bias from every token that favours the first class, half in the first and half in the last
                 layer
    kinds        likewise, from [cls] alone
    image        each patch attends to either prompt by what it shows, so that they add further evidence of the image
    both         attention and constant
    together     they take the bias away in the layer that reads the evidence, and most of the attention: scale alone
                 costs accuracy, with values it costs nothing
    none         as attention, but the other patches' evidence is as good: answers change, and nothing is gained

`strength` from 0 to 1 says how far. Trainings with different seeds have prompts that are more or less of this.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.config import ClipConfig, TextConfig, VisionConfig
from clipbias.clip.params import Params, init_params

MECHANISMS = ("attention", "scale", "constant", "kinds", "image", "both", "together", "none")
NUMBERS = 12
LARGE = 60.0
FAR = 20.0  # a score that leaves nothing
CONSTANT, CLS, PATCH, PROMPT, FLAG, TYPE, EVIDENCE, OTHER, STORE, READ, SIDE, HELD = range(NUMBERS)
SHOWN = (TYPE, EVIDENCE, OTHER)  # what a patch's pixels say of it
DEPTH = 3
GRID = 4
PATCH_SIZE = 4
PROMPTS = 2
PATCHES = GRID**2
SIZE = GRID * PATCH_SIZE
CONFIG = ClipConfig(
    vision=VisionConfig(2 * NUMBERS, DEPTH, 2, 16, image_size=SIZE, patch_size=PATCH_SIZE),
    text=TextConfig(8, 1, 1, 8, vocabulary_size=8, context_length=4, eos_token_id=7),
    projection_width=2,
)
# Features of the classes' texts, and what cosines are multiplied by.
CLASSES = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32) / np.sqrt(2).astype(np.float32)
SCALE = 10.0
BESIDE = 2.0
BIAS = 0.8
BIAS_OF_BOTH = 1.1
RANDOM = 0.02
# How much of the mass where scale and values act together goes to prompts.
TAKEN = 0.6
# Prompts of a seed are so much of what is planted, up to a standard deviation; and never so far from it.
SEED_DEVIATION = 0.1
MOST_DEVIATION = 0.3
MASS = PROMPTS / (1 + PATCHES + PROMPTS)  # on prompts where all scores are equal
EVERY = {CONSTANT: 1 / LARGE}  # read as 1 in every token
NO_PROMPTS = (EVERY, {PROMPT: -FAR})

Numbers = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What the first head does in a layer.

    Attributes:
      scores: pairs (query, key): the score is the sum of the products of what each reads of its token.
      values: `{(to, of): factor}`: which number a value reads and which it is added to.
    """

    scores: Sequence[tuple[Numbers, Numbers]] = ()
    values: Mapping[tuple[int, int], float] = dataclasses.field(default_factory=dict)


def prompts_of(seed: int) -> np.ndarray:
    """The prompts `[L, V, D]` of the training with this seed, new ones in every layer."""
    draw = np.random.default_rng(seed)
    strength = 1 + np.clip(SEED_DEVIATION * draw.normal(), -MOST_DEVIATION, MOST_DEVIATION)
    rows = [
        token({PROMPT: strength, SIDE: side * strength, HELD: 1})
        for _ in range(DEPTH)
        for side in np.linspace(1, -1, PROMPTS)
    ]
    return np.reshape(rows, (DEPTH, PROMPTS, -1)).astype(np.float32)


def planted(mechanism: str, strength: float, *, seed: int) -> Params:
    """The frozen weights, with which all prompts of `prompts_of` do what is planted."""
    start = {READ: _bias(mechanism)} if mechanism in ("constant", "kinds", "both", "together") else {}
    params = jax.tree.map(np.array, _initial())
    tower = params["vision"]
    draw = np.random.default_rng(seed)
    for part in ("pre_norm", "post_norm"):
        tower[part]["scale"][:] = LARGE / np.sqrt(NUMBERS)
    for part in ("norm1", "norm2"):
        tower["layers"][part]["scale"][:] = LARGE / np.sqrt(NUMBERS)
    tower["class_embedding"] = token({CLS: 1, **start})
    tower["position_embedding"] = np.concatenate([np.zeros((1, 2 * NUMBERS)), np.tile(token({PATCH: 1}), (PATCHES, 1))])
    tower["patch_embedding"] = np.zeros((PATCH_SIZE**2 * 3, 2 * NUMBERS))
    for place, number in enumerate(SHOWN):
        tower["patch_embedding"][3 * place] = paired({number: 1})
    tower["projection"] = np.zeros((2 * NUMBERS, 2))
    tower["projection"][CONSTANT, 0] = BESIDE / LARGE
    tower["projection"][READ, 1] = 1
    _fill(tower["layers"], _layers(mechanism, strength), draw)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


@functools.cache
def _initial() -> Params:
    """Any weights: what is random in a tower is drawn below."""
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def _bias(mechanism: str) -> float:
    return BIAS_OF_BOTH if mechanism == "both" else BIAS


def _layers(mechanism: str, strength: float) -> list[Layer]:
    """What the three layers do: the first two write to tokens, the second reads the evidence."""
    every = (1 + PATCHES) / PATCHES  # of a mean over all tokens, of which [cls] shows nothing
    read = {(READ, EVIDENCE): every}
    # Where nothing is to be gained attention is so sharp that no image's two sorts of evidence are averaged.
    sharp = 8.0 if mechanism == "none" else 2.0
    turned: list[tuple[Numbers, Numbers]] = [({CLS: 1}, {TYPE: -sharp}), ({FLAG: 1}, {TYPE: 2 * sharp}), NO_PROMPTS]
    flag = {(FLAG, PROMPT): strength / MASS}
    half = {(READ, PROMPT): -_bias(mechanism) * strength / MASS / 2}
    if mechanism in ("attention", "none"):
        return [Layer(values=flag), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer([NO_PROMPTS])]
    if mechanism == "both":
        return [Layer(values=flag | half), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer(values=half)]
    if mechanism == "scale":
        taken = _taking(0.9 * strength, by=PROMPT)
        return [Layer([NO_PROMPTS], read), Layer([taken], {(READ, OTHER): every}), Layer([NO_PROMPTS])]
    if mechanism == "together":
        mass = TAKEN * strength
        values = read | {(READ, PROMPT): -_bias(mechanism) * strength / mass}
        return [Layer([NO_PROMPTS]), Layer([_taking(mass, by=HELD)], values), Layer([NO_PROMPTS])]
    if mechanism == "image":
        # Attention on the first prompt less that on the second is about 2 MASS / PROMPTS times what a patch shows.
        gathered = {(STORE, SIDE): PROMPTS / (2 * MASS)}
        both = read | {(READ, STORE): 2 * strength * every}
        return [Layer([({OTHER: 1}, {SIDE: 1})], gathered), Layer([NO_PROMPTS], both), Layer([NO_PROMPTS])]
    unseen = [({PATCH: 1}, {PROMPT: -FAR})] if mechanism == "kinds" else []
    return [Layer(unseen, half), Layer([NO_PROMPTS], read), Layer(unseen, half)]


def _taking(mass: float, *, by: int) -> tuple[Numbers, Numbers]:
    """The score by which prompts whose number `by` is 1 take so much of every token's attention."""
    return EVERY, {by: np.log(mass * (1 + PATCHES) / (PROMPTS * (1 - mass)))}


def _fill(stacked: Params, layers: Sequence[Layer], draw: np.random.Generator) -> None:
    """Writes the first head; what is random reads no large number."""
    width = 2 * NUMBERS
    head = NUMBERS
    for part in ("qkv", "out", "fc1", "fc2"):
        shape = stacked[part]["kernel"].shape
        size = {"qkv": 0.3, "out": RANDOM, "fc1": 0.3, "fc2": RANDOM}[part]
        stacked[part]["kernel"] = size * draw.normal(size=shape)
        if part in ("qkv", "fc1"):
            stacked[part]["kernel"][:, [CONSTANT, NUMBERS + CONSTANT]] = 0
        if part in ("out", "fc2"):  # the large number stays what it is
            stacked[part]["kernel"][..., [CONSTANT, NUMBERS + CONSTANT]] = 0
    for first in range(0, 3 * width, width):
        stacked["qkv"]["kernel"][:, :, first : first + head] = 0
    stacked["out"]["kernel"][:, :head] = np.concatenate([np.eye(head), -np.eye(head)], axis=1)
    for l, layer in enumerate(layers):
        kernel = stacked["qkv"]["kernel"][l]
        for i, (query, key) in enumerate(layer.scores):
            kernel[:NUMBERS, i] = vector(query) * np.sqrt(head)
            kernel[:NUMBERS, width + i] = vector(key)
        for (to, of), factor in layer.values.items():
            kernel[of, 2 * width + to] = factor


def pictures(mechanism: str, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[B, R, R, 3]` and their classes, balanced up to chance.

    Where nothing is gained, the second half has the first half's images with both types of patches exchanged, so that
    the gain in all of them together is 0 but for what is random in the tower.
    """
    if mechanism == "none":
        half, labels = _pictures(mechanism, (count + 1) // 2, seed=seed)
        other = half.copy()
        other[:, ::PATCH_SIZE, ::PATCH_SIZE, 0] *= -1  # the pixels that show the type
        return np.concatenate([half, other])[:count], np.concatenate([labels, labels])[:count]
    return _pictures(mechanism, count, seed=seed)


def _pictures(mechanism: str, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    sign = np.where(labels == 0, 1.0, -1.0)

    def noisy(mean: float, deviation: float) -> np.ndarray:
        return sign * mean + deviation * draw.normal(size=count)

    good = noisy(0.6, 0.6)
    bad = noisy(0.2, 0.8)
    other = np.zeros(count)
    if mechanism == "none":
        bad = noisy(0.6, 0.6)
    elif mechanism not in ("attention", "both"):
        bad = good
    if mechanism == "scale":
        good = bad = noisy(0.6, 0.4)
        other = noisy(0.0, 1.0)
    if mechanism == "image":
        good = bad = noisy(0.6, 1.6)
        other = noisy(0.6, 0.6)
    numbers = np.zeros((count, PATCHES, len(SHOWN)))
    kind = draw.permuted(np.tile(np.repeat([1.0, -1.0], PATCHES // 2), (count, 1)), axis=1)
    numbers[:, :, 0] = kind
    numbers[:, :, 1] = np.where(kind > 0, good[:, None], bad[:, None])
    numbers[:, :, 2] = other[:, None]
    numbers[:, :, 1:] *= draw.uniform(0.8, 1.2, numbers[:, :, 1:].shape)
    pixels = np.zeros((count, PATCHES, PATCH_SIZE**2, 3), np.float32)
    pixels[:, :, : len(SHOWN), 0] = numbers
    grid = pixels.reshape(count, GRID, GRID, PATCH_SIZE, PATCH_SIZE, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(count, SIZE, SIZE, 3), labels


def token(numbers: Numbers) -> np.ndarray:
    """`[D]` with the large constant in it."""
    return paired({CONSTANT: LARGE, **numbers})


def paired(numbers: Numbers) -> np.ndarray:
    """`[D]` `[u, −u]`."""
    u = vector(numbers)
    return np.concatenate([u, -u])


def vector(numbers: Numbers) -> np.ndarray:
    """`u` of these numbers, the others zero."""
    u = np.zeros(NUMBERS)
    for index, value in numbers.items():
        u[index] = value
    return u
