"""Packed texts give the features and gradients of plain ones, and hold every token once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation, encode_packed_text, encode_text, init_params, pack
from clipbias.clip.packed_text import TILE, first_fit
from clipbias.clip.text import as_tokens
from tests import helpers
from tools.benchmarks.model import geometry

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


def adaptation(specific: bool) -> Adaptation:
    rng = np.random.default_rng(1)
    shape = (len(LENGTHS), 2, CONFIG.text.width) if specific else (2, CONFIG.text.width)
    return Adaptation(
        text_context=rng.normal(scale=0.1, size=shape).astype(np.float32),
        text_prompts=rng.normal(scale=0.1, size=(1, 2, CONFIG.text.width)).astype(np.float32),
        text_bias=rng.normal(scale=0.1, size=(CONFIG.text.layers, CONFIG.text.width)).astype(np.float32),
    )


@pytest.mark.ci
@pytest.mark.parametrize(("specific", "groups"), helpers.short([(False, 1), (True, 3)], (True, 3), unpack=True))
def test_features_and_gradients_equal_the_plain_ones(params, groups, specific):
    tokens = as_tokens(ids(), CONFIG, 2)
    packed = pack(tokens, groups=groups, class_specific=specific)
    weights = np.random.default_rng(2).normal(size=(len(LENGTHS), CONFIG.projection_width)).astype(np.float32)

    def plain(added):
        return (weights * encode_text(params, CONFIG, tokens, added, observe=lambda view: None)[0]).sum()

    def together(added):
        return (weights * encode_packed_text(params, CONFIG, packed, added)).sum()

    expected, actual = (jax.jit(jax.value_and_grad(encode))(adaptation(specific)) for encode in (plain, together))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), expected, actual)


def test_every_token_once():
    tokens = as_tokens(ids(), CONFIG, 2)
    packed = pack(tokens)
    assert packed.shared == 3  # start and the two context tokens
    texts = packed.texts[packed.texts >= 0]
    np.testing.assert_array_equal(np.bincount(texts), np.asarray(LENGTHS) + 1)
    assert packed.texts.shape[-1] == 24 > TILE


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
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(params["text"]["layers"]) if leaf.ndim == 3}

    def loss(added):
        return encode_packed_text(params, CONFIG, packed, added).sum()

    _, pull = jax.vjp(jax.jit(loss), adaptation(False))
    saved = [leaf.shape for leaf in jax.tree.leaves(pull) if isinstance(leaf, jnp.ndarray)]
    assert saved
    stacks = [shape for shape in saved if shape[:1] == (CONFIG.text.layers - 1,)]
    assert not [shape for shape in stacks if shape[-2:] in weights]
