import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import encode_image
from clipbias.errors import ClipbiasError
from clipbias.explain.similarity import choose_prompt, observe_similarity, prompt_distances, to_image
from tests.explain.models import tuned
from tests.reference import statistics


def test_distances_equal_the_reference():
    tokens = np.random.default_rng(0).normal(size=(2, 1 + 4 + 3, 5))
    expected = statistics.prompt_distance(tokens, 4)
    np.testing.assert_allclose(prompt_distances(jnp.asarray(tokens, jnp.float32), 4), expected, rtol=1e-5)


def test_observed_after_prompts_are_put_in(clip, images):
    task, learnables = tuned(clip, "vpt")
    observe = observe_similarity(16, prompts=4, prompt=1)
    both = lambda view: (observe(view), view.tokens)  # noqa: E731
    run = functools.partial(encode_image, config=clip.config, observe=both)
    adaptation = task.method.adapt(learnables)
    seen, tokens = jax.jit(lambda p, a, x: run(p, images=x, adaptation=a)[1])(clip.params, adaptation, images)
    np.testing.assert_allclose(tokens[1, 0, 17:], learnables["vision_prompts"][1], rtol=1e-6)
    expected = jnp.linalg.norm(tokens[1, 0, 18] - tokens[1, 0, 1:17], axis=-1)
    np.testing.assert_allclose(seen["distance"][1, 0], expected, rtol=1e-5)


def test_one_prompt_or_their_mean():
    distances = jnp.arange(6.0).reshape(1, 2, 3)
    assert choose_prompt(distances, "mean").tolist() == [[1.5, 2.5, 3.5]]
    assert choose_prompt(distances, 1).tolist() == [[3, 4, 5]]
    for wrong in (2, "first"):
        with pytest.raises(ClipbiasError, match="choose 'mean' or 0 … 1"):
            choose_prompt(distances, wrong)


def test_maps_at_image_size_are_bilinear_with_half_pixel_centres():
    shown = to_image(jnp.array([[0.0, 1.0, 0.0, 1.0]]), 4)[0]
    np.testing.assert_allclose(shown, np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-6)
    assert not to_image(jnp.ones((1, 4)), 4).any()
