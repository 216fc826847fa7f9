"""Relevancy of several texts of a class under changed weights and pixels: streaming equals the letter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation
from clipbias.explain.relevancy import relevancy
from clipbias.tuning import Method, Task
from tests.explain.models import CLASS_NAMES
from tests.reference.plain_relevancy import plain_relevancy
from tests.tuning import weights_common

PARTS = (("qkv", 3), ("out", 1))
TARGETS = np.array([0, 1, 2, 1])


@dataclasses.dataclass(frozen=True)
class LowRank(Method):
    """Queries, keys, values and outputs by low rank, a LayerNorm, the projection, and pixels."""

    def init(self, rng, clip, class_names):
        def tower(geometry):
            L = geometry.layers
            D = geometry.width
            low_rank = {name: {"down": jnp.zeros((L, P, D, 2)), "up": jnp.zeros((L, P, 2, D))} for name, P in PARTS}
            projection = jnp.zeros((D, clip.config.projection_width))
            return {"layers": {**low_rank, "norm2": {"scale": jnp.zeros((L, D))}}, "projection": projection}

        vision = clip.config.vision
        weights = {"vision_weights": tower(vision), "text_weights": tower(clip.config.text)}
        return {**weights, "pixels": jnp.zeros((vision.image_size, vision.image_size, 3))}

    def text(self, template, clip):
        text = super().text(template, clip)
        return dataclasses.replace(text, templates=(*text.templates, "a painting of a {}."))

    def adapt(self, learnables):
        return Adaptation(**learnables)


@pytest.mark.long
def test_streaming_equals_the_letter(clip, images):
    """Of one text per class, `test_against_reference` compares every method."""
    task = Task(clip, LowRank(), CLASS_NAMES)
    learnables = weights_common.drawn(task.shapes, 0.3)
    maps = relevancy(task, clip.params, learnables, images, TARGETS)
    plain = jax.jit(functools.partial(plain_relevancy, task))(clip.params, learnables, images, TARGETS)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(maps.scores, np.asarray(logits)[np.arange(len(TARGETS)), TARGETS], rtol=1e-5)
    for name in ("vision", "text"):
        expected = np.asarray(getattr(plain, name))
        np.testing.assert_allclose(getattr(maps, name), expected, atol=2e-5 * expected.max())
