"""What attention does: shares by kind of token (Fig. 4), distance and entropy (Fig. 5), `[cls]` maps, and how near
patches are to prompts (Fig. 6).

An observer reduces one layer's `LayerView` to one small array per sample while the forward pass runs, so that a dataset
of any size needs the memory of one batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import LayerView
from clipbias.clip.config import VisionConfig
from clipbias.clip.tokenizer import encode
from clipbias.clip.tower import Observe
from clipbias.explain.results import TEXT_KINDS
from clipbias.explain.statistics import stretched
from clipbias.tuning import Learnables, Task
from clipbias.tuning.prompts import name_tokens

SOS, PROMPT, WORDS, CATEGORY, DOT, EOS = range(len(TEXT_KINDS))
PAD = len(TEXT_KINDS)
# The most bytes of a character, and what stands for some of them alone.
_BYTES = 4
_BROKEN = "\ufffd"


@struct.dataclass
class Roles:
    """Roles of a tower's tokens, `[N]` or `[B, N]`.

    Attributes:
      prompts: learned prompts and contexts.
      queries: input tokens that have an influence and see at least one prompt.
    """

    prompts: jax.Array | np.ndarray
    queries: jax.Array | np.ndarray


def prompt_counts(task: Task, learnables: Learnables) -> tuple[int, int]:
    """`(V, T)`: the numbers of learned tokens in the vision and in the text tower."""
    adaptation = jax.eval_shape(task.method.adapt, learnables)
    vision = adaptation.vision_prompts
    text = adaptation.text_context
    return 0 if vision is None else vision.shape[-2], 0 if text is None else text.shape[-2]


def prompt_depths(task: Task, learnables: Learnables) -> tuple[int, int]:
    """In how many layers, from the first on, learned tokens are put in: `(vision, text)`, 0 in a tower without any.

    In these layers what stands in a slot is the same for every sample; beyond, it is what the layer before made of it.
    """
    adaptation = jax.eval_shape(task.method.adapt, learnables)
    vision = 0
    if adaptation.vision_prompts is not None:
        vision = adaptation.vision_prompts.shape[-3]
    if adaptation.text_context is None:
        return vision, 0
    deeper = adaptation.text_prompts
    return vision, 1 if deeper is None else 1 + deeper.shape[0]


def vision_roles(config: VisionConfig, prompts: int) -> Roles:
    """`[cls]`, patches, then `V` prompts: `[N]`."""
    is_prompt = np.arange(config.tokens + prompts) >= config.tokens
    return Roles(is_prompt, ~is_prompt)


def text_roles(task: Task) -> Roles:
    """Contexts at their places in every text: `[n · C, N]`."""
    is_prompt = np.asarray(task.tokens.context_rows) >= 0
    positions = np.arange(is_prompt.shape[1])
    first = np.argmax(is_prompt, axis=1)[:, None] if task.clip.config.text.causal else -1
    return Roles(is_prompt, ~is_prompt & (positions > first) & np.asarray(task.tokens.counted))


def text_kinds(task: Task) -> np.ndarray:
    """The kind of every text token, an index into `TEXT_KINDS`, `PAD` after EOS: int32 `[n · C, N]`.

    A text that is not read at its EOS has "eos" at the position that is, and `PAD` from its end up to there.

    "prompt" are the `T` learned tokens; "words" the words that stay frozen, those of a context that are left beside
    fewer prompts and all of a text without prompts; "category" the class name's own tokens; "dot" the token before EOS
    where the template ends with ".".
    """
    text = task.prompt
    tokenizer = task.clip.tokenizer
    names = task.class_names
    lengths = name_tokens(task.clip, names, text)
    ends = np.asarray(task.tokens.end)
    pooled = np.asarray(task.tokens.eos)
    first = task.clip.config.text.first_word
    has_dots = bool(encode(tokenizer, ["."])[0])
    kinds = np.full(task.tokens.ids.shape, WORDS, np.int32)
    if _learns_context(task):
        kinds[np.asarray(task.tokens.context_rows) >= 0] = PROMPT
    for i, row in enumerate(kinds):
        template = text.templates[i // len(names)]
        before = len(encode(tokenizer, [template.partition("{}")[0].strip()])[0])
        if (place := text.before[i // len(names)]) < text.context_tokens:
            before = place
        end = int(ends[i])
        row[:first] = SOS
        row[first + before : min(first + before + lengths[i % len(names)], end)] = CATEGORY
        if template.endswith(".") and end - 1 > before and has_dots:
            row[end - 1] = DOT
        row[end:] = PAD
        row[pooled[i]] = EOS
    return kinds


def index_kinds(kinds: np.ndarray) -> list[str]:
    """The kind's name at every token index, "" where texts `[C, N]` differ in it or it lies after the end of all."""
    names = (*TEXT_KINDS, "")
    return [names[column[0]] if (column == column[0]).all() else "" for column in np.asarray(kinds).T]


def prompt_text(task: Task) -> str:
    """The text around the class name, with `{}` in its place, as the method writes it before anything is learned."""
    return task.method.text(task.template, task.clip).templates[0]


def token_labels(task: Task, text: int) -> list[str]:
    """The tokens of one text as readable pieces, up to but without EOS; learned ones as "[1]", "[2]", …

    Tokens that hold parts of one character, of letters with accents and other scripts, are "ü 1/2" and "ü 2/2".
    """
    tokenizer = task.clip.tokenizer
    end = int(task.tokens.end[text])
    rows = task.tokens.context_rows[text]
    is_learned = _learns_context(task)
    words = [int(token) for token in task.tokens.ids[text, :end]]
    labels = ["SOS" for _ in range(task.clip.config.text.first_word)]
    while (position := len(labels)) < end:
        if is_learned and rows[position] >= 0:
            labels.append(f"[{rows[position] + 1}]")
            continue
        most = min(end, position + _BYTES)
        for stop in range(position + 1, most + 1):
            piece = tokenizer.decode(words[position:stop]).strip()
            if _BROKEN not in piece:
                break
        else:  # no text
            stop = position + 1
            piece = tokenizer.decode(words[position:stop]).strip()
        count = stop - position
        labels += [f"{piece} {number}/{count}" for number in range(1, count + 1)] if count > 1 else [piece]
    return labels


def _learns_context(task: Task) -> bool:
    return jax.eval_shape(task.method.adapt, task.shapes).text_context is not None


QUANTITIES = ("distance", "entropy", "cls_entropy")


def patch_distances(config: VisionConfig) -> np.ndarray:
    """Distance between the centres of every two patches in pixels, `[M, M]`."""
    rows, columns = np.divmod(np.arange(config.patches), config.grid)
    return config.patch_size * np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def entropy(probabilities: jax.Array) -> jax.Array:
    """`−Σ a ln a` over the last axis, in nats, with `0 ln 0 = 0`."""
    positive = probabilities > 0  # twice, so that the gradient at 0 is finite too
    return -jnp.where(positive, probabilities * jnp.log(jnp.where(positive, probabilities, 1)), 0).sum(-1)


def renormalise(probabilities: jax.Array) -> jax.Array:
    """Attention to some of the keys, `[…, N]`, with rows that sum to 1 again; a row of zeros stays as it is."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), jnp.finfo(probabilities.dtype).tiny)


def distance_and_entropy(probabilities: jax.Array, config: VisionConfig) -> dict[str, jax.Array]:
    """Statistics of attention `[B, H, N, N]` whose first tokens are `[cls]`, if any, and the patches, `[B, H]` each.

    - distance: mean over patch queries of `Σ_j A_ij · pixels` over patch keys; rows are not renormalised, so what they
      give to `[cls]` and prompts counts 0.
    - entropy: mean over the `[cls]` and patch queries; cls_entropy: of `[cls]` alone, where there is one.
    """
    first = config.first_patch
    inputs = config.tokens
    pixels = jnp.asarray(patch_distances(config), jnp.float32)
    among_patches = probabilities[..., first:inputs, first:inputs]
    of_queries = entropy(probabilities[..., :inputs, :])
    return {
        "distance": jnp.einsum("BHNM,NM->BHN", among_patches, pixels).mean(-1),  # in two sums: each stays exact longer
        "entropy": of_queries.mean(-1),
        **({"cls_entropy": of_queries[..., 0]} if first else {}),
    }


def observe_distance_and_entropy(config: VisionConfig, prompts: int) -> Observe:
    """Fig. 5 in the variants that apply: "clip" without prompts, else "without_prompt" and "with_prompt".

    The observer returns `{variant: {quantity: [B, H]}}`.
    """

    def observe(view: LayerView) -> Mapping[str, Mapping[str, jax.Array]]:
        if not prompts:
            return {"clip": distance_and_entropy(view.probabilities, config)}
        inputs = slice(config.tokens)
        return {
            "without_prompt": distance_and_entropy(renormalise(view.probabilities[..., inputs, inputs]), config),
            "with_prompt": distance_and_entropy(view.probabilities, config),
        }

    return observe


def cls_map(view: LayerView, patches: int) -> jax.Array:
    """Attention of `[cls]` to the patches, mean over heads: `[B, M]`."""
    return view.probabilities[:, :, 0, 1 : 1 + patches].mean(1)


def kind_sums(rows: jax.Array, kinds: jax.Array) -> jax.Array:
    """Rows `[C, …, N]` summed over the tokens of each kind `[C, N]`: `[C, …, 6]`."""
    member = jax.nn.one_hot(kinds, len(TEXT_KINDS), dtype=rows.dtype)
    return jnp.einsum("C...N,CNK->C...K", rows, member, precision="highest")


def observe_text_shares(eos: jax.Array, kinds: jax.Array) -> Observe:
    """Fig. 4: the attention of the EOS query by token kind, `[C, H, 6]` in the order of `TEXT_KINDS`, which sum to 1.

    Args:
      eos: `[C]`, position of EOS.
      kinds: `[C, N]`, from `text_kinds`.
    """

    def observe(view: LayerView) -> jax.Array:
        rows = jnp.take_along_axis(view.probabilities, eos[:, None, None, None], axis=2)[:, :, 0]
        return kind_sums(rows, kinds)

    return observe


def prompt_distances(tokens: jax.Array, patches: int, first: int = 1) -> jax.Array:
    """`‖p_k − x_j‖₂` between the prompts and the patch tokens at a block's input: `[B, N, D]` to `[B, V, M]`.

    `first` tokens stand before the patches.
    """
    x = tokens[:, first : first + patches]
    prompts = tokens[:, first + patches :]
    differences = (prompts[:, :, None] - x[:, None]).astype(jnp.float32)
    return jnp.sqrt(jnp.square(differences).sum(-1))


def observe_similarity(patches: int, *, prompts: int, first: int = 1) -> Observe:
    """`{"cls": [B, M]}`, attention of `[cls]` if there is one, and with prompts `{"distance": [B, M]}`, their mean."""

    def observe(view: LayerView) -> dict[str, jax.Array]:
        seen = {"cls": cls_map(view, patches)} if first else {}
        if prompts:
            seen["distance"] = prompt_distances(view.tokens, patches, first).mean(1)
        return seen

    return observe


def to_image(maps: jax.Array, image_size: int) -> jax.Array:
    """Patch maps `[…, M]` at image size, bilinear with half-pixel centres, scaled to 0 … 1: `[…, R, R]`."""
    *leading, patches = maps.shape
    side = round(patches**0.5)
    shape = (*leading, image_size, image_size)
    images = jax.image.resize(maps.reshape(*leading, side, side), shape, "bilinear")
    return stretched(images.reshape(*leading, -1)).reshape(shape)
