"""Tiny random CLIPs in which it is known what makes prompts work, for the benchmark of known mechanisms.

A token of width 24 stands for 12 numbers `u`, as `[u, −u]`: its mean is zero. The first is the same large number in
every token, so that LayerNorm, scaled back by it, is the identity to a thousandth. The first head of each layer does
what is planted. The second head and the MLPs are random and small: they make every effect a little other than zero.

Images show noisy evidence for one of two classes, `[cls]` collects it in one number, and the feature is that number
beside a constant. Texts are made alike: the two words of a class's name are what patches are to an image, EOS is its
`[cls]`, and the words that prompts replace are never attended to. Each tower has two prompts in every layer, and in
both they do one of these:

    attention    they raise a flag in the pooled token, by which the second layer attends to patches with better
                 evidence, and to a word that says nothing of what all classes share
    scale        they take attention from patches that show noise, and from what all names share
    constant     they take a bias from every token that favours the first class, half in the first and half in the last
                 layer
    kinds        likewise, from the pooled token alone
    image        each patch attends to either prompt by what it shows, so that they add further evidence of the image;
                 each word likewise, which moves both classes' features apart and by itself gains nothing
    both         attention and constant
    together     they take the bias away in the layer that reads the evidence, and most of the attention: scale alone
                 costs accuracy, with values it costs nothing
    none         as attention, but the other patches' evidence is as good, and both words say the same: answers change,
                 and nothing is gained

`strength` from 0 to 1 says how far. Trainings with different seeds have prompts that are more or less of this, in each
tower by itself.
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
from clipbias.tuning import Learnables
from clipbias.tuning.methods.ivlp import IVLP

MECHANISMS = ("attention", "scale", "constant", "kinds", "image", "both", "together", "none")
NUMBERS = 12
LARGE = 60.0
FAR = 20.0  # a score that leaves nothing
CONSTANT, CLS, PATCH, PROMPT, FLAG, TYPE, EVIDENCE, OTHER, WORD, READ, SIDE, HELD = range(NUMBERS)
SHOWN = (TYPE, EVIDENCE, OTHER)  # what a patch's pixels say of it
DEPTH = 3
GRID = 4
PATCH_SIZE = 4
PROMPTS = 2
PATCHES = GRID**2
SIZE = GRID * PATCH_SIZE
NAMES = ("grey cat", "pink bird")  # of each the first word is of one type, the second of the other
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
METHOD = IVLP(text_tokens=PROMPTS, vision_tokens=PROMPTS)
SCALE = 10.0  # what cosines are multiplied by
# By tower the constant that a feature has beside its evidence.
BESIDE = {"vision": 2.0, "text": 1.0}
# What the pooled token starts with: in both towers it favours the first class.
BIAS = {"vision": 0.7, "text": -0.15}
BIAS_OF_BOTH = {"vision": 0.9, "text": -0.15}
SHARED = -0.5  # evidence that both names show
# How large the outputs of what is random are: less where there are few tokens to average over.
RANDOM = {"vision": 0.02, "text": 0.01}
# How much of the mass where scale and values act together goes to prompts.
TAKEN = 0.6
# Prompts of a seed are so much of what is planted, up to a standard deviation; and never so far from it.
SEED_DEVIATION = 0.1
MOST_DEVIATION = 0.3
# By tower the tokens that the pooled token attends to besides prompts, and how many of them show evidence. Of a text
# they are the start, both words of the name and the end.
INPUTS = {"vision": 1 + PATCHES, "text": 4}
SHOWING = {"vision": PATCHES, "text": 2}
EVERY = {CONSTANT: 1 / LARGE}  # read as 1 in every token
NO_PROMPTS = (EVERY, {PROMPT: -FAR})
NO_WORDS = (EVERY, {WORD: -FAR})

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


def prompts_of(seed: int) -> Learnables:
    """The learnables of `METHOD` of the training with this seed, new prompts in every layer."""
    draw = np.random.default_rng(seed)
    vision, text = (_prompts(draw) for _ in range(2))
    return {"vision_prompts": vision, "text_context": text[0], "text_prompts": text[1:]}


def _prompts(draw: np.random.Generator) -> np.ndarray:
    """`[L, V, D]`, the same in every layer."""
    strength = 1 + np.clip(SEED_DEVIATION * draw.normal(), -MOST_DEVIATION, MOST_DEVIATION)
    rows = [token({PROMPT: strength, SIDE: side * strength, HELD: 1}) for side in np.linspace(1, -1, PROMPTS)]
    return np.tile(np.asarray(rows, np.float32), (DEPTH, 1, 1))


def planted(mechanism: str, strength: float, *, seed: int, exact: bool = False) -> Clip:
    """The frozen model, in which all prompts of `prompts_of` do what is planted.

    Args:
      mechanism: one of `MECHANISMS`.
      strength: how far.
      seed: of what is random.
      exact: whether nothing is random, and texts say their class alone: vision prompts do what is planted and no more.
    """
    params = jax.tree.map(np.array, _initial())
    draw = np.random.default_rng(seed)
    planted_text = "none" if exact else mechanism
    for name, of_tower in (("vision", mechanism), ("text", planted_text)):
        tower = params[name]
        for part, weights in (*tower.items(), *tower["layers"].items()):
            if "norm" in part:
                weights["scale"][:] = LARGE / np.sqrt(NUMBERS)
        tower["position_embedding"][:] = 0
        tower["projection"][:] = 0
        tower["projection"][CONSTANT, 0] = BESIDE[name] / LARGE
        tower["projection"][READ, 1] = 1
        _fill(tower["layers"], _layers(of_tower, strength, name), draw, 0.0 if exact else RANDOM[name])
    vision = params["vision"]
    vision["class_embedding"] = token({CLS: 1, READ: _start(mechanism, "vision")})
    vision["position_embedding"][1:] = token({PATCH: 1})
    vision["patch_embedding"][:] = 0
    for place, number in enumerate(SHOWN):
        vision["patch_embedding"][3 * place] = paired({number: 1})
    params["text"]["token_embedding"] = np.stack([token(numbers) for numbers in _words(planted_text)])
    params["logit_scale"] = np.log(SCALE)
    return Clip(
        params=jax.tree.map(lambda x: np.asarray(x, np.float32), params),
        config=CONFIG,
        tokenizer=_tokenizer(),
        # Levels of a pixel are 1/32 apart, from −4 to 4, and 0 is one of them.
        preprocessing=Preprocessing(Resizing(SIZE), mean=3 * (128 / 255,), std=3 * (32 / 255,)),
        name="planted",
        published=f"planted-{mechanism}-{strength:g}-{seed}{'-exact' if exact else ''}",
    )


@functools.cache
def _initial() -> Params:
    """Any weights: what is random in a tower is drawn below."""
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def _tokenizer() -> Tokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, STOP))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"bos_token": START, "eos_token": END, "pad_token": END}
    return cast("Tokenizer", transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special))


def _bias(mechanism: str, tower: str) -> float:
    return (BIAS_OF_BOTH if mechanism == "both" else BIAS)[tower]


def _start(mechanism: str, tower: str) -> float:
    """What the pooled token starts with."""
    return _bias(mechanism, tower) if mechanism in ("constant", "kinds", "both", "together") else 0.0


def _words(mechanism: str) -> list[Numbers]:
    """What every word of `WORDS` stands for."""
    numbers: dict[str, Numbers] = {word: {WORD: 1} for word in WORDS}
    numbers[START] = {}
    numbers[END] = {CLS: 1, READ: _start(mechanism, "text")}
    for name, sign in zip(NAMES, (1.0, -1.0), strict=True):
        other = {"scale": 2 * SHARED, "image": 0.3 * sign}.get(mechanism, 0.0)
        poor = 0.3 * sign + SHARED if mechanism in ("attention", "both") else sign
        for word, kind, evidence in zip(name.split(), (-1, 1), (poor, sign), strict=True):
            numbers[word] = {PATCH: 1, TYPE: kind, EVIDENCE: evidence, OTHER: other}
    return list(numbers.values())


def _layers(mechanism: str, strength: float, tower: str) -> list[Layer]:
    """What a tower's three layers do. No text attends to the words that prompts replace."""
    layers = _planted_layers(mechanism, strength, tower)
    if tower == "vision":
        return layers
    return [dataclasses.replace(layer, scores=[*layer.scores, NO_WORDS]) for layer in layers]


def _planted_layers(mechanism: str, strength: float, tower: str) -> list[Layer]:
    """The first two layers write to tokens, the second reads the evidence."""
    mass = PROMPTS / (INPUTS[tower] + PROMPTS)  # on prompts where all scores are equal
    bias = _bias(mechanism, tower)
    every = INPUTS[tower] / SHOWING[tower]  # of a mean over all tokens, of which some show nothing
    read = {(READ, EVIDENCE): every}
    # Where nothing is to be gained attention is so sharp that no image's two sorts of evidence are averaged.
    sharp = 8.0 if mechanism == "none" else 2.0
    turned: list[tuple[Numbers, Numbers]] = [({CLS: 1}, {TYPE: -sharp}), ({FLAG: 1}, {TYPE: 2 * sharp}), NO_PROMPTS]
    flag = {(FLAG, PROMPT): strength / mass}
    half = {(READ, PROMPT): -bias * strength / mass / 2}
    if mechanism in ("attention", "none"):
        return [Layer(values=flag), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer([NO_PROMPTS])]
    if mechanism == "both":
        return [Layer(values=flag | half), Layer(turned, {(READ, EVIDENCE): 1.0}), Layer(values=half)]
    if mechanism == "scale":
        taken = _taking(0.9 * strength, INPUTS[tower], by=PROMPT)
        return [Layer([NO_PROMPTS], read), Layer([taken], {(READ, OTHER): every}), Layer([NO_PROMPTS])]
    if mechanism == "together":
        most = TAKEN * strength
        values = read | {(READ, PROMPT): -bias * strength / most}
        return [Layer([NO_PROMPTS]), Layer([_taking(most, INPUTS[tower], by=HELD)], values), Layer([NO_PROMPTS])]
    if mechanism == "image":
        # Attention on the first prompt less that on the second is about 2 mass / PROMPTS times what a patch shows.
        gathered = {(SIDE, SIDE): PROMPTS / (2 * mass)}
        both = read | {(READ, SIDE): 2 * strength * every}
        return [Layer([({OTHER: 1}, {SIDE: 1})], gathered), Layer([NO_PROMPTS], both), Layer([NO_PROMPTS])]
    unseen = [({PATCH: 1}, {PROMPT: -FAR})] if mechanism == "kinds" else []
    return [Layer(unseen, half), Layer([NO_PROMPTS], read), Layer(unseen, half)]


def _taking(mass: float, inputs: int, *, by: int) -> tuple[Numbers, Numbers]:
    """The score by which prompts whose number `by` is 1 take so much of the attention of a token to `inputs` others."""
    return EVERY, {by: np.log(mass * inputs / (PROMPTS * (1 - mass)))}


def _fill(stacked: Params, layers: Sequence[Layer], draw: np.random.Generator, random: float) -> None:
    """Writes the first head; what is random reads no large number."""
    width = 2 * NUMBERS
    head = NUMBERS
    for part in ("qkv", "out", "fc1", "fc2"):
        shape = stacked[part]["kernel"].shape
        size = {"qkv": 0.3, "out": random, "fc1": 0.3, "fc2": random}[part]
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


def opposite(images: np.ndarray) -> np.ndarray:
    """The same images with all evidence for the other class."""
    images = images.copy()
    for number in (EVIDENCE, OTHER):
        images[:, ::PATCH_SIZE, SHOWN.index(number) :: PATCH_SIZE, 0] *= -1
    return images


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
