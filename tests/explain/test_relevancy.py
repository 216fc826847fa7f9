import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from clipbias.explain.relevancy import relevancy
from clipbias.training import mesh as meshes
from clipbias.tuning import CONSTANTS, Task
from tests import own_methods
from tests.explain.models import CLASS_NAMES, moved, tuned
from tests.explain.plain_relevancy import plain_relevancy
from tools import benchmark as model

TARGETS = np.array([0, 1, 2, 1])


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(np.asarray(b)).max())


@pytest.mark.long
def test_a_head_of_ones_own(clip, images):
    """Its logit is differentiated by the image and the target's texts; the other classes and constants stay fixed."""
    task = Task(clip, own_methods.Head(texts=2), CLASS_NAMES)
    images = images[:2]
    targets = TARGETS[:2]
    learnables = moved(task)
    plain = jax.jit(functools.partial(plain_relevancy, task))(clip.params, learnables, images, targets)
    maps = relevancy(task, clip.params, learnables, images, targets)
    assert_close(maps, plain)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(maps.scores, logits[jnp.arange(2), targets], rtol=1e-5)
    pairs = jnp.stack([(targets + 1) % 3, targets], axis=1)
    text = task.text_features(clip.params, learnables)
    many = relevancy(task, clip.params, learnables, images, pairs, chunk=3, text=text)
    assert_close(jax.tree.map(lambda x: x[:, 1], many), plain)


@dataclasses.dataclass(frozen=True)
class TwoTexts(own_methods.Everything):
    """Pairs of low rank in the text tower as well, and two texts of a class."""

    def init(self, rng, clip, class_names):
        text = clip.config.text
        pair = {"down": jnp.zeros((text.layers, 3, text.width, 2)), "up": jnp.zeros((text.layers, 3, 2, text.width))}
        return {**super().init(rng, clip, class_names), "text_weights": {"layers": {"qkv": pair}}}

    def text(self, template, clip):
        text = super().text(template, clip)
        return dataclasses.replace(text, templates=(*text.templates, "a painting of a {}."))


@pytest.mark.long
def test_changed_weights_and_pixels(clip, images):
    """Prompts, a bias, pairs of low rank, the projection and pixels at once."""
    task = Task(clip, TwoTexts(), CLASS_NAMES)
    learnables = moved(task)
    plain = jax.jit(functools.partial(plain_relevancy, task))(clip.params, learnables, images, TARGETS)
    maps = relevancy(task, clip.params, learnables, images, TARGETS)
    assert_close(maps, plain, 2e-5)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(maps.scores, logits[np.arange(4), TARGETS], rtol=1e-5)


@pytest.mark.long
def test_a_cache_has_its_say(clip, images):
    """The votes of its images move the map of the image; their share of the logit leaves the text alone."""
    task = Task(clip, own_methods.Cache(), CLASS_NAMES)
    keys = jax.random.normal(jax.random.key(0), (5, clip.config.projection_width))
    held = {"keys": keys / jnp.linalg.norm(keys, axis=-1, keepdims=True), "labels": jnp.array([0, 1, 2, 0, 1])}
    with_cache, without = (
        relevancy(task, clip.params, {CONSTANTS: {**held, "strength": strength}}, images, TARGETS)
        for strength in (jnp.float32(50), jnp.float32(0))
    )
    plain = relevancy(Task(clip, "zero_shot", CLASS_NAMES), clip.params, {}, images, TARGETS)
    assert_close(without, plain)
    assert_close(with_cache.text, plain.text)
    assert float(jnp.abs(with_cache.vision - plain.vision).max()) > 0.1 * float(plain.vision.max())


@pytest.mark.long
def test_what_is_not_kept_is_computed_again():
    clip = model.random_clip(model.geometry("tiny", layers=6))
    task = Task(clip, "vpt", ["cat", "dog"])
    images = clip.preprocessing.normalize(model.random_images(clip.config, 4))
    maps = {}
    sizes = {}
    for recompute in (False, True):
        run = functools.partial(relevancy, task, targets=jnp.array([0, 1, 1, 0]), recompute=recompute)
        program = jax.jit(run).lower(clip.params, task.init(), images).compile()
        maps[recompute] = program(clip.params, task.init(), images)
        sizes[recompute] = program.memory_analysis().temp_size_in_bytes
        assert_close(maps[recompute], maps[False])
    assert sizes[True] < sizes[False] / 2


@pytest.mark.long
def test_a_tower_of_one_layer():
    clip = model.random_clip(model.geometry("tiny", layers=1))
    task = Task(clip, "ivlp", ["cat", "dog"])
    arguments = clip.params, task.init(), clip.preprocessing.normalize(model.random_images(clip.config, 2))
    plain = jax.jit(functools.partial(plain_relevancy, task))(*arguments, jnp.array([0, 1]))
    for recompute in (False, True):
        maps = relevancy(task, *arguments, jnp.array([0, 1]), recompute=recompute)
        assert_close(maps, plain)


@pytest.mark.ci
def test_ways_to_compute_agree(clip, images):
    """A target of each image over several devices; several, some pairs at a time and with layers computed again."""
    task, learnables = tuned(clip, "bias")
    pairs = np.stack([TARGETS, (TARGETS + 1) % 3], axis=1)
    many = jax.device_get(relevancy(task, clip.params, learnables, images, pairs, recompute=True, chunk=3))
    assert many.vision.shape == (4, 2, 16)
    mesh = meshes.make_mesh(data=4, devices=jax.devices()[:4])
    run = jax.jit(functools.partial(relevancy, task))
    params = meshes.replicate(mesh, clip.params)
    placed = meshes.replicate(mesh, learnables)
    shards = np.asarray(images)
    for k, targets in enumerate(pairs.T):
        sharded = run(params, placed, meshes.place_rows(mesh, shards), meshes.place_rows(mesh, targets))
        assert sharded.vision.sharding.spec[:1] == PartitionSpec("data")[:1]
        assert_close(jax.tree.map(lambda x, k=k: x[:, k], many), sharded)
