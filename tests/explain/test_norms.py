"""Norms of what was learned and of the tokens it joins, against plain NumPy."""

import jax
import numpy as np
import pytest

from clipbias.clip import Clip, encode_image, encode_text
from clipbias.clip.vision import patchify
from clipbias.explain.norms import Norm, norms
from tests.explain.models import tuned
from tests.helpers import short

METHODS = ("maple", "taskres", "bias_by_kind")  # contexts and prompts of both towers, a residual, biases


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)


def select(found: list[Norm], tower: str, part: str) -> list[Norm]:
    return [one for one in found if (one.tower, one.part) == (tower, part)]


def length(array: jax.Array) -> np.ndarray:
    return np.sqrt((np.asarray(array, np.float64) ** 2).sum(-1))


@pytest.mark.parametrize("method", METHODS)
def test_every_learned_vector_is_measured(clip: Clip, method: str) -> None:
    task, learnables = tuned(clip, method)
    adaptation, found = task.method.adapt(learnables), norms(task, learnables)
    arrays = {
        ("text", "context"): adaptation.text_context,
        ("text", "prompt"): adaptation.text_prompts,
        ("vision", "prompt"): adaptation.vision_prompts,
        ("text", "bias"): adaptation.text_bias,
        ("vision", "bias"): adaptation.vision_bias,
    }
    for where, array in arrays.items():
        expected = [] if array is None else length(array).ravel().tolist()
        assert [one.norm for one in select(found, *where)] == pytest.approx(expected)
    residual = [one.norm for one in select(found, "text", "residual")]
    assert residual == ([] if method != "taskres" else pytest.approx([length(adaptation.text_residual).mean()]))
    layers = [one.layer for one in select(found, "text", "prompt")]
    assert layers == sorted(layers) and (not layers or layers[0] == 1)
    assert all((one.tokens_norm is None) == (one.tower == "vision") for one in found)


def assert_biases_beside(found: list[Norm], bias: np.ndarray, states: np.ndarray, read: np.ndarray, real: np.ndarray):
    """Each bias beside what enters the next block, without the bias, of the tokens that get it."""
    kinds = {None: real} if bias.ndim == 2 else {0: real & read, 1: real & ~read}
    assert [(one.layer, one.prompt) for one in found] == [(layer, kind) for layer in range(len(bias)) for kind in kinds]
    for one in found[: -len(kinds)]:
        added = bias[one.layer] if one.prompt is None else bias[one.layer][one.prompt]
        before = np.asarray(states[one.layer + 1]) - added
        assert one.tokens_norm == pytest.approx(length(before)[kinds[one.prompt]].mean(), rel=1e-5)


@pytest.mark.parametrize("method", short(["ivlp", "bias", "bias_by_kind"], "ivlp", "bias_by_kind"))
def test_text_tokens_beside_them(clip: Clip, method: str) -> None:
    task, learnables = tuned(clip, method)
    adaptation, found = task.method.adapt(learnables), norms(task, learnables)
    tokens = task.tokens
    run = jax.jit(lambda p, a: encode_text(p, clip.config, tokens, a, observe=lambda view: view.tokens))
    _, states = run(clip.params, adaptation)
    real = np.arange(tokens.ids.shape[1]) <= np.asarray(tokens.eos)[:, None]
    others = real & (np.asarray(tokens.context_rows) < 0)
    if method == "ivlp":
        embeddings = np.asarray(clip.params["text"]["token_embedding"])[np.asarray(tokens.ids)]
        assert select(found, "text", "context")[0].tokens_norm == pytest.approx(length(embeddings)[others].mean())
        for one in select(found, "text", "prompt"):
            assert one.tokens_norm == pytest.approx(length(states[one.layer])[others].mean(), rel=1e-5)
    else:
        is_end = np.arange(tokens.ids.shape[1]) == np.asarray(tokens.eos)[:, None]
        assert_biases_beside(select(found, "text", "bias"), np.asarray(adaptation.text_bias), states, is_end, real)


@pytest.mark.parametrize("method", short(["vpt", "bias", "bias_by_kind"], "vpt", "bias_by_kind"))
def test_image_tokens_beside_them(clip: Clip, pictures: np.ndarray, method: str) -> None:
    task, learnables = tuned(clip, method)
    adaptation, found = task.method.adapt(learnables), norms(task, learnables, images=pictures)
    images, patches = np.asarray(clip.preprocessing.normalize(pictures)), clip.config.vision.patches
    run = jax.jit(lambda p, a: encode_image(p, clip.config, images, a, observe=lambda view: view.tokens))
    _, states = run(clip.params, adaptation)
    if method == "vpt":
        weights = clip.params["vision"]
        cut = np.asarray(jax.jit(patchify, static_argnums=1)(images, clip.config.vision.patch_size)) @ np.asarray(
            weights["patch_embedding"]
        )
        cls = np.broadcast_to(np.asarray(weights["class_embedding"]), (3, 1, cut.shape[-1]))
        before = np.concatenate([cls, cut], 1) + np.asarray(weights["position_embedding"])
        for one in select(found, "vision", "prompt"):
            expected = before if one.layer == 0 else states[one.layer][:, : 1 + patches]
            assert one.tokens_norm == pytest.approx(length(expected).mean(), rel=1e-5)
    else:
        every = np.ones(states.shape[1:3], bool)
        is_cls = every & (np.arange(every.shape[1]) == 0)
        assert_biases_beside(select(found, "vision", "bias"), np.asarray(adaptation.vision_bias), states, is_cls, every)


def test_the_last_blocks_output(clip: Clip) -> None:
    """The mean over one token, read out, is a feature's: TaskRes is compared with the class features themselves."""
    task, learnables = tuned(clip, "taskres")
    features = jax.jit(lambda p: encode_text(p, clip.config, task.tokens)[0])(clip.params)
    (one,) = norms(task, learnables)
    assert one.tokens_norm == pytest.approx(length(features).mean(), rel=1e-5)
    (fewer,) = norms(task, learnables, classes=1)
    assert fewer.tokens_norm == pytest.approx(length(features)[0], rel=1e-5)


def test_contexts_of_each_class_are_averaged(clip: Clip) -> None:
    task, learnables = tuned(clip, "coop", class_specific=True)
    found = norms(task, learnables, classes=2)
    expected = length(learnables["text_context"]).mean(0)
    assert [one.norm for one in found] == pytest.approx(expected.tolist())
    assert all(one.tokens_norm > 0 for one in found)
