"""A model whose class evidence sits in one patch: maps must find it, and removing it must hurt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.explain.faithfulness import FRACTIONS, area_under_curve, black_out, removed
from clipbias.explain.relevancy import explanations
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES, transparent

PLACES = np.array([5, 0, 15, 10])


def pictures(clip, places):
    """Grey pictures with one patch of bright noise each, the same everywhere."""
    size = clip.config.vision.image_size
    patch = clip.config.vision.patch_size
    grid = size // patch
    bright = np.random.default_rng(0).normal(0, 3, (patch, patch, 3))
    drawn = np.full((len(places), size, size, 3), 0.0, np.float32)
    for image, place in zip(drawn, places, strict=True):
        row, column = divmod(place, grid)
        image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = bright
    return drawn


def speaking_for(clip, params, images):
    """The parameters with a logit of class 0 that grows with the bright patch: its text feature is that direction."""
    task = Task(clip, "zero_shot", CLASS_NAMES)
    features = np.asarray(jax.jit(task.image_features)(params, {}, np.stack([images[0], np.zeros_like(images[0])])))
    direction = features[0] - features[1]
    text = np.asarray(jax.jit(task.class_features)(params, {}))
    # Rotate the joint space so that class 0's feature becomes the direction in which the bright patch moves images.
    move = direction / np.linalg.norm(direction) - text[0]
    reflection = np.eye(len(move), dtype=np.float32) - 2 * np.outer(move, move) / (move @ move)
    return {**params, "text": {**params["text"], "projection": params["text"]["projection"] @ reflection}}


@pytest.mark.long
def test_maps_of_gradients_find_the_patch_and_attention_cannot(clip):
    images = pictures(clip, PLACES)
    task = Task(clip, "zero_shot", CLASS_NAMES)
    params = speaking_for(clip, transparent(clip), images)
    maps = explanations(task, params, {}, images, np.zeros(len(PLACES), int))
    for name in ("relevancy", "legrad", "grad_eclip"):
        np.testing.assert_array_equal(maps[name].vision.argmax(-1), PLACES)
    rest = np.delete(maps["relevancy"].vision[0], PLACES[0])
    assert maps["relevancy"].vision[0, PLACES[0]] > 2 * rest.max()
    for name in ("attention", "rollout"):  # attention is even by construction
        assert np.ptp(maps[name].vision, axis=-1).max() < 1e-5


def test_curves_rank_a_true_map_above_a_random_one(clip):
    patch = clip.config.vision.patch_size
    places = PLACES
    raw = np.abs(pictures(clip, places)) * 10

    def predict(images: jax.Array) -> jax.Array:
        """Class 0 as long as anything is bright."""
        seen = images.sum((1, 2, 3)) > 0
        return jnp.stack([seen, ~seen], axis=-1).astype(jnp.float32)

    true = np.eye(16, dtype=np.float32)[places]
    random = np.random.default_rng(1).random(true.shape, np.float32)
    areas = {}
    for name, maps in (("true", true), ("random", random)):
        for direction in ("positive", "negative"):
            steps = (black_out(raw, removed(maps, fraction, direction), patch) for fraction in FRACTIONS)
            hits = [np.mean(predict(images).argmax(-1) == 0) for images in steps]
            areas[name, direction] = area_under_curve(FRACTIONS, np.asarray(hits))
    assert areas["true", "positive"] < areas["random", "positive"] < areas["true", "negative"]
    assert areas["true", "positive"] == pytest.approx(0.05 / 0.9)  # gone at the first step
    assert areas["true", "negative"] == 1
