import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import VisionConfig, encode_image, encode_text
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import (
    cls_map,
    distance_and_entropy,
    entropy,
    kind_sums,
    observe_distance_and_entropy,
    observe_text_shares,
    renormalise,
)
from clipbias.explain.tokens import text_kinds
from clipbias.tuning import Adaptation, Task
from tests.explain.models import CLASS_NAMES, tuned
from tests.reference import statistics

VIT_B_16 = VisionConfig(width=4, layers=1, heads=1, mlp_width=4, image_size=224, patch_size=16)


def attention_of(clip, images, task=None, learnables=None):
    """All probabilities `[L, B, H, N, N]`."""
    adaptation = Adaptation() if task is None else task.method.adapt(learnables)
    run = functools.partial(encode_image, config=clip.config, observe=lambda view: view.probabilities)
    return jax.jit(lambda params, a, x: run(params, images=x, adaptation=a)[1])(clip.params, adaptation, images)


def test_uniform_attention_has_the_known_values():
    with_cls = distance_and_entropy(jnp.full((1, 1, 197, 197), 1 / 197), VIT_B_16)
    assert float(with_cls["distance"][0, 0]) == pytest.approx(115.901, abs=5e-4)
    assert float(with_cls["entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    assert float(with_cls["cls_entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    patches_alone = jnp.zeros((1, 1, 197, 197)).at[..., 1:].set(1 / 196)
    assert float(distance_and_entropy(patches_alone, VIT_B_16)["distance"][0, 0]) == pytest.approx(116.492, abs=5e-4)


def test_entropy_of_certainty_is_zero_and_differentiable():
    certain = jnp.array([0.0, 1.0, 0.0])
    assert float(entropy(certain)) == 0
    assert np.isfinite(jax.grad(entropy)(certain)).all()


@pytest.mark.parametrize("variant", ["without_prompt", "with_prompt"])
def test_statistics_equal_the_reference(clip, images, variant):
    task, learnables = tuned(clip, "vpt")
    attention = np.asarray(attention_of(clip, images, task, learnables), np.float64)
    observe = observe_distance_and_entropy(clip.config.vision, 4)
    run = functools.partial(encode_image, config=clip.config, observe=observe)
    adaptation = task.method.adapt(learnables)
    _, seen = jax.jit(lambda params, a, x: run(params, images=x, adaptation=a))(clip.params, adaptation, images)
    grid, patch = clip.config.vision.grid, clip.config.vision.patch_size
    for l, b in ((0, 0), (2, 3)):
        own = statistics.variant(attention[l, b], 4, variant)
        expected = statistics.attention_distance(own, grid, patch)
        np.testing.assert_allclose(seen[variant]["distance"][l, b], expected, rtol=1e-5)
        expected = statistics.attention_entropy(own, grid * grid)
        np.testing.assert_allclose(seen[variant]["entropy"][l, b], expected.mean(-1), rtol=1e-5)
        np.testing.assert_allclose(seen[variant]["cls_entropy"][l, b], expected[:, 0], rtol=1e-5)


def test_without_prompts_the_first_layer_attends_like_clip(clip, images):
    task, learnables = tuned(clip, "ivlp")
    original, prompted = attention_of(clip, images), attention_of(clip, images, task, learnables)
    kept = renormalise(prompted[..., :17, :17])
    np.testing.assert_allclose(kept[0], original[0], atol=1e-6)
    assert float(jnp.abs(kept[1] - original[1]).max()) > 1e-3


@pytest.mark.parametrize("method, options", [("zero_shot", {}), ("ivlp", {}), ("coop", {"position": "front"})])
def test_text_shares_add_up_to_one(clip, method, options):
    task, learnables = tuned(clip, method, **options)
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    observe = observe_text_shares(tokens.eos, jnp.asarray(text_kinds(task)))

    @jax.jit
    def run(params, learnables):
        adaptation = task.method.adapt(learnables)
        both = lambda view: (observe(view), view.probabilities)  # noqa: E731
        return encode_text(params, clip.config, tokens, adaptation, observe=both)[1]

    shares, attention = run(clip.params, learnables)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    if method != "coop":
        for c, end in enumerate(task.tokens.eos):
            row = np.asarray(attention[1, c, 0, end], np.float64)
            prompts = 4 if method == "ivlp" else 0
            expected = statistics.text_shares(row, int(end), prompts, 4 - prompts)
            np.testing.assert_allclose(shares[1, c, 0], list(expected.values()), atol=1e-6)


def test_mean_over_the_tokens_of_a_kind():
    rows, kinds = jnp.array([[0.2, 0.3, 0.5]]), jnp.array([[0, 1, 1]])
    np.testing.assert_allclose(kind_sums(rows, kinds, reduction="mean"), [[0.2, 0.4, 0, 0, 0, 0]], rtol=1e-6)
    with pytest.raises(ClipbiasError, match="reduction is 'max'; choose from sum, mean"):
        kind_sums(rows, kinds, reduction="max")


def test_cls_map_is_the_mean_over_heads(clip, images):
    run = functools.partial(encode_image, config=clip.config, observe=lambda view: cls_map(view, 16))
    _, seen = jax.jit(lambda params, x: run(params, images=x))(clip.params, images)
    np.testing.assert_allclose(seen, attention_of(clip, images)[:, :, :, 0, 1:].mean(2), rtol=1e-5)


def test_kinds_of_an_ensemble(clip):
    task = Task(clip, "zero_shot", CLASS_NAMES, templates=("a {}.", "a photo of a {}."))
    assert text_kinds(task).shape == (6, task.tokens.ids.shape[1])
