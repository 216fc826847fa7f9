"""Tiny CLIPs in which it is known how prompts work, for the benchmark of known mechanisms.

A token of width 24 stands for 12 numbers `u`, as `[u, −u]`: its mean is zero. The first is the same large number in
every token, so that LayerNorm, scaled back by it, is the identity to a thousandth. The first head of each layer does
what is planted. The second head has random attention and no output, and MLPs give 0.

Images show noisy evidence for one of two classes, `[cls]` collects it in one number, and the feature is that number
beside a constant. A text is its class's word. Two prompts in every layer of the vision tower do one of these:

    attention           they raise a flag in `[cls]`, by which the second layer attends to patches with better evidence
    scale               they take attention from patches that show noise
    constant            they take a bias from every token that favours the first class, half in the first and half in
                        the last layer
    kinds               likewise, from `[cls]` alone
    image               each patch attends to either prompt by its evidence, which they add to it
    class               `[cls]` attends to either prompt by the sign of its evidence, which is zero-shot's class, and
                        gets one of two vectors; weak evidence then counts for the other class, as it should
    both                attention and constant
    together            they take the bias away in the layer that reads the evidence, and most of the attention: scale
                        alone costs accuracy, with values it costs nothing
    attention_harms     as both, but attention turns to worse evidence; the constant gains more
    constant_harms      as both, but the constant adds a bias; attention gains more
    image_harms         constant, and prompts take further evidence for the true class from each patch; the constant
                        gains more
    none                as attention, but the other patches' evidence is as good: answers change, and nothing is gained

`strength` from 0 to 1 says how far. Prompts of different seeds are more or less of this.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import numpy as np
import tokenizers
import transformers

from clipbias.clip import Clip, Preprocessing
from clipbias.clip.config import ClipConfig, TextConfig, VisionConfig
from clipbias.clip.params import Params, init_params
from clipbias.clip.tokenizer import Tokenizer
from clipbias.data.transforms import Resizing

NUMBERS = 12
LARGE = 60.0
FAR = 20.0  # a score that leaves nothing
CONSTANT, CLS, PATCH, PROMPT, FLAG, TYPE, EVIDENCE, OTHER, WORD, READ, SIDE, HELD = range(NUMBERS)
SHOWN = (TYPE, EVIDENCE, OTHER)  # numbers that a patch's pixels show
DEPTH = 3
GRID = 4
PATCH_SIZE = 4
PROMPTS = 2
PATCHES = GRID**2
SIZE = GRID * PATCH_SIZE
NAMES = ("grey cat", "pink bird")
# All words; an id is a place in the list.
START, *CONTEXT, STOP, END = ("<start>", "a", "photo", "of", ".", "<end>")
WORDS = (START, *CONTEXT, *" ".join(NAMES).split(), STOP, END)
CONFIG = ClipConfig(
    vision=VisionConfig(2 * NUMBERS, DEPTH, 2, 16, image_size=SIZE, patch_size=PATCH_SIZE),
    text=TextConfig(
        2 * NUMBERS, DEPTH, 2, 16, vocabulary_size=len(WORDS), context_length=9, eos_token_id=WORDS.index(END)
    ),
    projection_width=2,
)
SCALE = 10.0  # of cosines
# Constant of a feature beside its evidence, by tower.
BESIDE = {"vision": 2.0, "text": 1.0}
# Start of `[cls]`, which favours the first class and which prompts take away.
BIAS = {
    "constant": 0.7,
    "kinds": 0.7,
    "together": 0.7,
    "both": 0.9,
    "attention_harms": 0.8,
    "image_harms": 1.2,
}
HARM = 0.7  # bias that prompts add to `[cls]`
TAKEN = 0.6  # attention to prompts where scale and values act together
AGAINST = 0.4  # part of the further evidence that prompts take away
# Evidence that is weak counts for the other class, and prompts exchange both classes of it.
WEAK, STRONG, EXCHANGED = 1.1, 3.0, 2.2
# Prompts of a seed have a strength near 1, with this standard deviation and largest difference.
SEED_DEVIATION = 0.1
MOST_DEVIATION = 0.3
INPUTS = 1 + PATCHES
EVERY = {CONSTANT: 1 / LARGE}  # read as 1 in every token
NO_PROMPTS = (EVERY, {PROMPT: -FAR})

Numbers = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Layer:
    """First head of a layer.

    Attributes:
      scores: pairs (query, key): the score is the sum of the products of the numbers that each reads of its token.
      values: `{(to, of): factor}`: the number that a value reads, and the number that it is added to.
    """

    scores: Sequence[tuple[Numbers, Numbers]] = ()
    values: Mapping[tuple[int, int], float] = dataclasses.field(default_factory=dict)


def prompts_of(seed: int) -> np.ndarray:
    """Returns the vision prompts of a seed, `[L, V, D]`, the same in every layer."""
    strength = 1 + np.clip(SEED_DEVIATION * np.random.default_rng(seed).normal(), -MOST_DEVIATION, MOST_DEVIATION)
    rows = [token({PROMPT: strength, SIDE: side * strength, HELD: 1}) for side in np.linspace(1, -1, PROMPTS)]
    return np.tile(np.asarray(rows, np.float32), (DEPTH, 1, 1))


def planted(mechanism: str, strength: float, *, seed: int) -> Clip:
    """Returns the frozen model in which `prompts_of` act by a mechanism; `seed` is of the second head."""
    params = jax.tree.map(np.array, _initial())
    draw = np.random.default_rng(seed)
    # A text attends to its class's words, and to no word of the template.
    words = Layer([(EVERY, {WORD: -FAR})], {(READ, EVIDENCE): 2.0})
    for name, layers in (("vision", _layers(mechanism, strength)), ("text", [words, Layer(), Layer()])):
        tower = params[name]
        for part, weights in (*tower.items(), *tower["layers"].items()):
            if "norm" in part:
                weights["scale"][:] = LARGE / np.sqrt(NUMBERS)
        tower["position_embedding"][:] = 0
        tower["projection"][:] = 0
        tower["projection"][CONSTANT, 0] = BESIDE[name] / LARGE
        tower["projection"][READ, 1] = 1
        _fill(tower["layers"], layers, draw)
    vision = params["vision"]
    vision["class_embedding"] = token({CLS: 1, READ: BIAS.get(mechanism, 0.0)})
    vision["position_embedding"][1:] = token({PATCH: 1})
    vision["patch_embedding"][:] = 0
    for place, number in enumerate(SHOWN):
        vision["patch_embedding"][3 * place] = paired({number: 1})
    params["text"]["token_embedding"] = np.stack([token(numbers) for numbers in _words()])
    params["logit_scale"] = np.log(SCALE)
    return Clip(
        params=jax.tree.map(lambda x: np.asarray(x, np.float32), params),
        config=CONFIG,
        tokenizer=_tokenizer(),
        # Levels of a pixel are 1/32 apart, from −4 to 4, and 0 is one of them.
        preprocessing=Preprocessing(Resizing(SIZE), mean=3 * (128 / 255,), std=3 * (32 / 255,)),
        name="planted",
        published=f"planted-{mechanism}-{strength:g}-{seed}",
    )


@functools.cache
def _initial() -> Params:
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def _tokenizer() -> Tokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, STOP))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"bos_token": START, "eos_token": END, "pad_token": END}
    return cast("Tokenizer", transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special))


def _words() -> list[Numbers]:
    """Returns the numbers of every word of `WORDS`."""
    numbers: dict[str, Numbers] = {word: {WORD: 1} for word in WORDS}
    numbers |= {START: {}, END: {CLS: 1}}
    for name, sign in zip(NAMES, (1.0, -1.0), strict=True):
        numbers |= {word: {EVIDENCE: sign} for word in name.split()}
    return list(numbers.values())


def _layers(mechanism: str, strength: float) -> list[Layer]:
    """Returns the vision tower's three layers: the first two write to tokens, the second reads the evidence."""
    mass = PROMPTS / (INPUTS + PROMPTS)  # on prompts where all scores are equal
    bias = BIAS.get(mechanism, 0.0)
    every = INPUTS / PATCHES  # of a mean over all tokens, of which `[cls]` shows nothing
    read = {(READ, EVIDENCE): every}
    # Where nothing is to be gained attention is so sharp that no image's two sorts of evidence are averaged.
    sharp = 8.0 if mechanism == "none" else 2.0
    turned: list[tuple[Numbers, Numbers]] = [({CLS: 1}, {TYPE: -sharp}), ({FLAG: 1}, {TYPE: 2 * sharp}), NO_PROMPTS]
    flag = {(FLAG, PROMPT): strength / mass}
    added = HARM if mechanism == "constant_harms" else -bias
    half = {(READ, PROMPT): added * strength / mass / 2}
    # Attention on the first prompt less that on the second is about 2 mass / PROMPTS times the query.
    gathered = {(SIDE, SIDE): PROMPTS / (2 * mass)}
    match mechanism:
        case "attention" | "none":
            return [Layer(values=flag), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer([NO_PROMPTS])]
        case "both" | "attention_harms" | "constant_harms":
            return [Layer(values=flag | half), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer(values=half)]
        case "scale":
            taken = _taking(0.9 * strength, by=PROMPT)
            return [Layer([NO_PROMPTS], read), Layer([taken], {(READ, OTHER): every}), Layer([NO_PROMPTS])]
        case "together":
            most = TAKEN * strength
            values = read | {(READ, PROMPT): -bias * strength / most}
            return [Layer([NO_PROMPTS]), Layer([_taking(most, by=HELD)], values), Layer([NO_PROMPTS])]
        case "image":
            both = read | {(READ, SIDE): 2 * strength * every}
            return [Layer([({OTHER: 1}, {SIDE: 1})], gathered), Layer([NO_PROMPTS], both), Layer([NO_PROMPTS])]
        case "image_harms":
            both = read | {(READ, SIDE): -AGAINST * strength * every}
            return [Layer([({OTHER: 1}, {SIDE: 1})], gathered | half), Layer([NO_PROMPTS], both), Layer(values=half)]
        case "class":
            # So far that the other prompt and all inputs get nothing, whatever an image shows.
            side = ({READ: 1.5 * FAR}, {SIDE: 1})
            exchanged = {(READ, SIDE): -EXCHANGED * strength}
            return [Layer([NO_PROMPTS], read), Layer([side], exchanged), Layer([NO_PROMPTS])]
        case "constant" | "kinds":
            unseen = [({PATCH: 1}, {PROMPT: -FAR})] if mechanism == "kinds" else []
            return [Layer(unseen, half), Layer([NO_PROMPTS], read), Layer(unseen, half)]
    raise ValueError(f"no mechanism {mechanism!r} is planted")


def _taking(mass: float, *, by: int) -> tuple[Numbers, Numbers]:
    """Returns the score by which prompts whose number `by` is 1 take so much of every token's attention."""
    return EVERY, {by: np.log(mass * INPUTS / (PROMPTS * (1 - mass)))}


def _fill(stacked: Params, layers: Sequence[Layer], draw: np.random.Generator) -> None:
    """Writes the first head; the second is random, and reads no large number."""
    width = 2 * NUMBERS
    head = NUMBERS
    for part in ("qkv", "out", "fc1", "fc2"):
        stacked[part]["kernel"][:] = 0
    stacked["qkv"]["kernel"][:] = 0.3 * draw.normal(size=stacked["qkv"]["kernel"].shape)
    stacked["qkv"]["kernel"][:, [CONSTANT, NUMBERS + CONSTANT]] = 0
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
    """Returns images `[B, R, R, 3]` and their classes, balanced up to chance.

    Where nothing is gained, the second half has the first half's images with both types of patches exchanged, so that
    the gain in all of them together is 0.
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

    # Evidence on patches of either type, `good` where a flag turns attention to; and further evidence.
    good = noisy(0.6, 0.6)
    bad = noisy(0.2, 0.8)
    other = np.zeros(count)
    match mechanism:
        case "none":
            bad = noisy(0.6, 0.6)
        case "attention" | "both" | "constant_harms":
            pass
        case "attention_harms":
            # Its noise comes on top: a mean of both sorts is never better than either.
            bad = noisy(0.6, 0.25)
            good = bad + noisy(-0.15, 0.4)
        case "scale":
            good = bad = noisy(0.6, 0.4)
            other = noisy(0.0, 1.0)
        case "image":
            good = bad = noisy(0.6, 1.6)
            other = noisy(0.6, 0.6)
        case "image_harms":
            good = bad = noisy(0.6, 0.6)
            other = noisy(0.6, 0.3)
        case "class":
            # A few images show evidence for the other class, so that no model is always right.
            level = np.where(draw.random(count) < 0.35, -WEAK, STRONG) * np.where(
                draw.random(count) < 0.04, -sign, sign
            )
            good = bad = level + np.clip(0.2 * draw.normal(size=count), -0.4, 0.4)
        case _:
            bad = good
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


def opposite(images: np.ndarray) -> np.ndarray:
    """Returns the images with all evidence for the other class."""
    images = images.copy()
    for number in (EVIDENCE, OTHER):
        images[:, ::PATCH_SIZE, SHOWN.index(number) :: PATCH_SIZE, 0] *= -1
    return images


def token(numbers: Numbers) -> np.ndarray:
    """Returns `[D]` with the large constant in it."""
    return paired({CONSTANT: LARGE, **numbers})


def paired(numbers: Numbers) -> np.ndarray:
    """Returns `[u, −u]`, `[D]`."""
    u = vector(numbers)
    return np.concatenate([u, -u])


def vector(numbers: Numbers) -> np.ndarray:
    """Returns `u` of these numbers, with zeros for all others."""
    u = np.zeros(NUMBERS)
    for index, value in numbers.items():
        u[index] = value
    return u
