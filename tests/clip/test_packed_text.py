"""Packed texts hold every token once. That they give the features of plain ones is found in `test_bias_shapes`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation, encode_packed_text, init_params, pack
from clipbias.clip.packed_text import MIN_TILE, first_fit
from clipbias.clip.text import as_tokens
from tools.benchmark import geometry

CONFIG = geometry("tiny")
LENGTHS = (3, 9, 4, 4, 20, 5, 3)  # name tokens; with the context, one text needs more than a tile of the least length


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def ids():
    end = CONFIG.text.eos_token_id
    rng = np.random.default_rng(0)
    rows = np.zeros((len(LENGTHS), 4 + max(LENGTHS)), np.int32)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[:3] = (end - 1, 7, 8)
        row[3 : 3 + length] = rng.integers(10, 500, length)
        row[3 + length] = end
    return rows


def test_every_token_once():
    tokens = as_tokens(ids(), CONFIG, 2)
    packed = pack(tokens)
    assert packed.shared == 3  # start and the two context tokens
    texts = packed.texts[packed.texts >= 0]
    np.testing.assert_array_equal(np.bincount(texts), np.asarray(LENGTHS) + 1)
    assert packed.texts.shape[-1] == 24 > MIN_TILE


def test_a_tile_holds_whole_texts_and_no_more_than_fits():
    lengths = sorted(np.random.default_rng(0).integers(1, 17, 200), reverse=True)
    starts = first_fit(lengths, 16)
    taken = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    assert len(set(taken.tolist())) == sum(lengths)
    assert all(start // 16 == (start + length - 1) // 16 for start, length in zip(starts, lengths, strict=True))
    assert max(taken) // 16 + 1 <= sum(lengths) / 16 * 1.1  # hardly any room is left over


def test_the_backward_pass_keeps_no_weights(params):
    """What a training step keeps for its backward pass is tokens, not slices of the frozen weights."""
    packed = pack(as_tokens(ids(), CONFIG, 2))
    width = CONFIG.text.width
    shapes = {"text_context": (2, width), "text_prompts": (1, 2, width), "text_bias": (CONFIG.text.layers, width)}
    added = Adaptation(**{name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(params["text"]["layers"]) if leaf.ndim == 3}

    def loss(added):
        return encode_packed_text(params, CONFIG, packed, added).sum()

    _, pull = jax.vjp(jax.jit(loss), added)
    saved = [leaf.shape for leaf in jax.tree.leaves(pull) if isinstance(leaf, jnp.ndarray)]
    assert saved
    stacks = [shape for shape in saved if shape[:1] == (CONFIG.text.layers - 1,)]
    assert not [shape for shape in stacks if shape[-2:] in weights]
