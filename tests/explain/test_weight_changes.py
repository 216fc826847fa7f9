"""Relevancy of methods that change weights and pixels: streaming equals the computation by the letter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation
from clipbias.explain.relevancy import relevancy
from clipbias.tuning import Method, Task
from tests.explain.models import CLASS_NAMES
from tests.reference.plain_relevancy import plain_relevancy

TARGETS = jnp.array([0, 1, 2, 1])


@dataclasses.dataclass(frozen=True)
class LowRank(Method):
    """Queries, keys, values and outputs by low rank, a LayerNorm, the projection, and pixels."""

    def init(self, rng, clip, class_names):
        def tower(rng, geometry):
            keys, (L, D) = jax.random.split(rng, 6), (geometry.layers, geometry.width)
            shapes = {"down": (L, 3, D, 2), "up": (L, 3, 2, D)}, {"down": (L, 1, D, 2), "up": (L, 1, 2, D)}
            qkv, out = (
                {
                    name: 0.3 * jax.random.normal(key, shape)
                    for key, (name, shape) in zip(keys[i:], one.items(), strict=False)
                }
                for i, one in ((0, shapes[0]), (2, shapes[1]))
            )
            scale = {"scale": 0.3 * jax.random.normal(keys[4], (L, D))}
            projection = 0.1 * jax.random.normal(keys[5], (D, clip.config.projection_width))
            return {"layers": {"qkv": qkv, "out": out, "norm2": scale}, "projection": projection}

        size = clip.config.vision.image_size
        keys = jax.random.split(rng, 3)
        return {
            "vision_weights": tower(keys[0], clip.config.vision),
            "text_weights": tower(keys[1], clip.config.text),
            "pixels": 0.3 * jax.random.normal(keys[2], (size, size, 3)),
        }

    def adapt(self, learnables):
        return Adaptation(**learnables)


def test_streaming_equals_the_letter(clip, images):
    task = Task(clip, LowRank(), CLASS_NAMES)
    learnables = task.init(1)
    found = relevancy(task, clip.params, learnables, images, TARGETS)
    plain = jax.jit(functools.partial(plain_relevancy, task))
    wanted = plain(clip.params, learnables, images, TARGETS)
    frozen = relevancy(Task(clip, "zero_shot", CLASS_NAMES), clip.params, {}, images, TARGETS)
    for name in ("vision", "text"):
        expected = np.asarray(getattr(wanted, name))
        np.testing.assert_allclose(getattr(found, name), expected, atol=2e-5 * expected.max())
    assert np.abs(np.asarray(frozen.vision) - np.asarray(wanted.vision)).max() > 0.1 * float(wanted.vision.max())
