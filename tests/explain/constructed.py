"""Towers built by hand, in each of which one thing alone makes prompts (or a bias) work.

A token of width 24 stands for 12 numbers `u`, as `[u, −u]`: its mean is zero. The first of them is the same large
number in every token, so that LayerNorm, scaled back by it, is the identity to a thousandth. MLPs and the second head
add nothing. Of the first head, `scores` and `values` say what it does in each layer.

Patches show evidence for one of two classes, `[cls]` sums up what it attends to in its readout, and the features are
that readout. Every model is wrong, or at chance, before it is tuned, and right after.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipbias.data import Split
from tests.reference import numpy_clip
from tests.reference.methods import Reference
from tests.reference.weights import State
from tools.planted import (
    CLS,
    EVERY,
    FAR,
    FLAG,
    GRID,
    LARGE,
    NO_PROMPTS,
    NUMBERS,
    PATCH,
    PATCH_SIZE,
    PATCHES,
    PROMPT,
    TYPE,
    Layer,
    Numbers,
    paired,
    token,
    vector,
)

NAMES = ("cat", "bird")
EVIDENCE, OTHER, READOUT = (6, 7), (8, 9), (10, 11)
LAYERS = 3
SHOWN = (TYPE, *EVIDENCE, *OTHER)  # what a patch's pixels say of it


@dataclasses.dataclass
class Constructed:
    """A CLIP with the two layers of its vision tower that matter, what tuned it, and images that it is asked about."""

    clip: Reference
    images: np.ndarray  # [B, 16, 16, 3]
    labels: np.ndarray  # [B]
    prompts: np.ndarray | None = None  # [depth, V, D]
    bias: np.ndarray | None = None  # [L, D]


def build(clip: Reference, layers: Sequence[Layer], cls: Numbers) -> Reference:
    """The given tiny CLIP with this vision tower; the texts of `NAMES` have the first two unit vectors as features."""
    state = dict(clip.state)
    for name, value in state.items():
        if name.startswith("vision_model"):
            state[name] = np.zeros_like(value)
    width = 2 * NUMBERS
    for name in state:
        if name.startswith("vision_model") and "norm" in name and name.endswith("weight"):
            state[name] = np.full(width, LARGE / np.sqrt(NUMBERS))
    state["vision_model.embeddings.class_embedding"] = token({CLS: 1, **cls})
    state["vision_model.embeddings.position_embedding.weight"][1:] = token({PATCH: 1})
    for i, number in enumerate(SHOWN):
        row, column = divmod(i, PATCH_SIZE)
        state["vision_model.embeddings.patch_embedding.weight"][:, 0, row, column] = paired({number: 1})
    for l, layer in enumerate(layers):
        _fill(state, f"vision_model.encoder.layers.{l}.self_attn", layer)
    state["visual_projection.weight"] = np.zeros_like(state["visual_projection.weight"])
    for c, number in enumerate(READOUT):
        state["visual_projection.weight"][c, number] = 1
    return Reference(_with_texts(state, clip), clip.config, clip.tokenizer)


def _fill(state: State, name: str, layer: Layer) -> None:
    # The first head is the first 12 rows; all maps read the first half of a token.
    for i, (query, key) in enumerate(layer.scores):
        state[f"{name}.q_proj.weight"][i, :NUMBERS] = vector(query) * np.sqrt(NUMBERS)
        state[f"{name}.k_proj.weight"][i, :NUMBERS] = vector(key)
    for (to, of), factor in layer.values.items():
        state[f"{name}.v_proj.weight"][to, of] = factor
    eye = np.eye(NUMBERS)
    state[f"{name}.out_proj.weight"][:, :NUMBERS] = np.concatenate([eye, -eye])


def _with_texts(state: State, clip: Reference) -> State:
    """A text projection that makes each class's text its own unit vector."""
    tokens = clip.tokenizer.tokenize([f"a photo of a {name}." for name in NAMES])
    plain = {**state, "text_projection.weight": np.eye(clip.config["text_config"]["hidden_size"])}
    rows = numpy_clip.encode_text(plain, clip.config, tokens).features
    features = np.eye(len(NAMES), clip.config["projection_dim"])
    return {**state, "text_projection.weight": (np.linalg.pinv(rows) @ features).T, "logit_scale": np.log(5.0)}


def pictures(
    labels: np.ndarray,
    *,
    opposed: np.ndarray | bool = False,
    other: bool = False,
    strength: np.ndarray | float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """[B, 16, 16, 3] images of these classes.

    Args:
      opposed: whether the half of the patches that is of another type shows evidence for the wrong class; [B] or one.
      other: whether every patch also shows evidence of the other sort, for the wrong class.
      strength: of the evidence, [B] or one.
    """
    rng = np.random.default_rng(seed)
    opposed, strength = (np.broadcast_to(x, labels.shape) for x in (opposed, strength))
    images = np.zeros((len(labels), GRID * PATCH_SIZE, GRID * PATCH_SIZE, 3))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        of_other_type = rng.permutation(PATCHES) < PATCHES // 2
        for patch in range(PATCHES):
            numbers = {TYPE: -1 if of_other_type[patch] else 1}
            shown = 1 - label if opposed[i] and of_other_type[patch] else label
            numbers[EVIDENCE[shown]] = strength[i] * rng.uniform(0.8, 1.2)
            if other:
                numbers[OTHER[1 - label]] = rng.uniform(0.8, 1.2)
            top, left = (PATCH_SIZE * place for place in divmod(patch, GRID))
            for place, number in enumerate(SHOWN):
                row, column = divmod(place, PATCH_SIZE)
                image[top + row, left + column, 0] = numbers.get(number, 0)
    return images


READ_EVIDENCE = {(to, of): 1.0 for to, of in zip(READOUT, EVIDENCE, strict=True)}
UNIFORM_MASS = 2 / (1 + PATCHES + 2)  # of two prompts where all scores are equal


def _two_prompts() -> np.ndarray:
    """One set of two prompts, which stay in the sequence after the first layer."""
    return np.stack([token({PROMPT: 1})] * 2)[None]


def _labels(count: int) -> np.ndarray:
    return np.arange(count) % 2


TURNED = [({CLS: 1}, {TYPE: -8.0}), ({FLAG: 1}, {TYPE: 16.0}), NO_PROMPTS]


def attention_only(clip: Reference, count: int, method: str = "vpt") -> Constructed:
    """Tuning raises a flag in the first layer that nothing reads but the second layer's query of `[cls]`.

    Unflagged it looks at patches that show the wrong class, flagged at the others.
    """
    layers = [Layer(values={(FLAG, PROMPT): 1 / UNIFORM_MASS}), Layer(TURNED, READ_EVIDENCE)]
    labels = _labels(count)
    scene = Constructed(build(clip, layers, {}), pictures(labels, opposed=True), labels)
    if method == "bias":
        return dataclasses.replace(scene, bias=np.stack([paired({FLAG: 1}), *np.zeros((LAYERS - 1, 2 * NUMBERS))]))
    return dataclasses.replace(scene, prompts=_two_prompts())


def attention_and_values(clip: Reference, count: int) -> Constructed:
    """Images of the first class need other attention; in those of the second a constant hides their faint evidence."""
    bias, faint = 0.17, 0.03
    written = {(FLAG, PROMPT): 1 / UNIFORM_MASS, (READOUT[0], PROMPT): -bias / UNIFORM_MASS}
    layers = [Layer(values=written), Layer(TURNED, READ_EVIDENCE)]
    labels = _labels(count)
    images = pictures(labels, opposed=labels == 0, strength=np.where(labels, faint, 1.0))
    return Constructed(build(clip, layers, {READOUT[0]: bias}), images, labels, _two_prompts())


def scale_only(clip: Reference, count: int) -> Constructed:
    """Prompts' values are zero; in the second layer they take nine tenths of the attention to what is misleading."""
    nine_to_one = np.log(9 * (1 + PATCHES) / 2)
    mislead = {(to, of): 3.0 for to, of in zip(READOUT, OTHER, strict=True)}
    layers = [Layer([NO_PROMPTS], READ_EVIDENCE), Layer([(EVERY, {PROMPT: nine_to_one})], mislead)]
    labels = _labels(count)
    return Constructed(build(clip, layers, {}), pictures(labels, other=True), labels, _two_prompts())


def constant_values(clip: Reference, count: int, *, by_kind: bool = False, method: str = "vpt") -> Constructed:
    """`[cls]` starts out in favour of the first class; prompts take that away from every token, image or not.

    Args:
      by_kind: only `[cls]` sees the prompts.
      method: "vpt", or "bias" that takes it away directly.
    """
    # [cls] sees them as in the uniform case; nothing else reads the constant.
    scores = [({PATCH: 1}, {PROMPT: -FAR})] if by_kind else []
    layers = [
        Layer(scores, {(READOUT[0], PROMPT): -1 / UNIFORM_MASS}),
        Layer([NO_PROMPTS], {at: factor / 2 for at, factor in READ_EVIDENCE.items()}),
    ]
    labels = _labels(count)
    scene = Constructed(build(clip, layers, {READOUT[0]: 1}), pictures(labels), labels)
    if method == "bias":
        taken = paired({READOUT[0]: -1})
        return dataclasses.replace(scene, bias=np.stack([taken, *np.zeros((LAYERS - 1, 2 * NUMBERS))]))
    return dataclasses.replace(scene, prompts=_two_prompts())


def image_values(clip: Reference, count: int) -> Constructed:
    """Prompts collect the evidence in the first layer and hand it to `[cls]` in the second, which sees no patch."""
    collect = {(to, of): 1.0 for to, of in zip(OTHER, EVIDENCE, strict=True)}
    only_cls = ({CLS: 1, PATCH: 1}, {CLS: FAR})
    layers = [
        Layer([only_cls, ({PROMPT: 1}, {CLS: -FAR})], collect),
        Layer([({CLS: 1}, {CLS: FAR, PROMPT: FAR})], {(to, of): 5.0 for to, of in zip(READOUT, OTHER, strict=True)}),
    ]
    labels = _labels(count)
    start = {READOUT[0]: 0.31, READOUT[1]: 0.3}
    return Constructed(build(clip, layers, start), pictures(labels), labels, _two_prompts())


CONSTRUCTED = {
    "attention": attention_only,
    "both": attention_and_values,
    "scale": scale_only,
    "constant": constant_values,
    "kinds": lambda clip, count: constant_values(clip, count, by_kind=True),
    "image": image_values,
    "attention, bias": lambda clip, count: attention_only(clip, count, "bias"),
    "constant, bias": lambda clip, count: constant_values(clip, count, method="bias"),
}


def split(made: Constructed, mean: np.ndarray, deviation: np.ndarray) -> Split:
    """The images as a dataset of PNG files, rounded to eight bits."""
    pixels = np.clip(np.rint(255 * (made.images * deviation + mean)), 0, 255).astype(np.uint8)

    def read(index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels[index]).save(file, "PNG")
        return file.getvalue()

    return Split(tuple(f"{index}.png" for index in range(len(pixels))), made.labels, read)
