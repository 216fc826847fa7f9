"""The reference agrees with itself: attention's gradients with finite differences, explanations with known values."""

import math

import numpy as np
import pytest

from tests import helpers
from tests.reference import differences, methods, numpy_clip, relevancy, statistics, weights
from tests.reference.cases import CLASS_NAMES


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    return helpers.tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision=(16, 2, 2), image_size=8)


def test_attention_gradients_equal_finite_differences_through_taps(clip):
    learnables = methods.random_learnables(clip.config, "ivlp", 5, text=2, vision=2)
    inputs = methods.prepare(clip, "ivlp", CLASS_NAMES, learnables)
    image = helpers.random_images(clip.config, 1)
    pair = relevancy.pair(clip, inputs, image[0], 1)
    alone = relevancy.only(inputs, 1)
    for tower, gradients in (("vision", pair.vision_gradient), ("text", pair.text_gradient)):
        for layer, gradient in enumerate(gradients):
            direction = weights.deterministic_uniform(8, layer, gradient.shape)

            def score(distance, tower=tower, layer=layer, gradients=gradients, direction=direction):
                taps = [np.zeros(1)] * len(gradients)
                taps[layer] = distance * direction[None]
                return methods.forward(clip, alone, image, **{f"{tower}_taps": taps}).logits[0, 0]

            slope = differences.central(score)
            assert abs(slope - (gradient * direction).sum()) < 1e-6 * np.linalg.norm(gradient)


def test_class_specific_context_that_is_equal_for_all_is_the_shared_context(clip):
    images = helpers.random_images(clip.config, 2)
    shared = methods.random_learnables(clip.config, "coop", 5)
    specific = {"text_context": np.stack([shared["text_context"]] * 5)}
    first, second = (
        methods.task_logits(clip, "coop", CLASS_NAMES, learnables, images) for learnables in (shared, specific)
    )
    np.testing.assert_array_equal(first, second)


def test_the_words_own_embeddings_as_context_are_zero_shot(clip):
    images = helpers.random_images(clip.config, 2)
    words = clip.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    learnables = {"text_context": numpy_clip.token_embeddings(clip.state, words)}
    tuned = methods.task_logits(clip, "coop", CLASS_NAMES, learnables, images)
    plain = methods.task_logits(clip, "zero_shot", CLASS_NAMES, {}, images)
    np.testing.assert_allclose(tuned, plain, rtol=1e-12)


def test_distance_of_uniform_attention_has_the_known_values():
    patches_alone = np.zeros((1, 197, 197))
    patches_alone[:, 1:, 1:] = 1 / 196
    with_cls = np.full((1, 197, 197), 1 / 197)
    assert statistics.attention_distance(patches_alone, 14, 16)[0] == pytest.approx(116.492, abs=5e-4)
    assert statistics.attention_distance(with_cls, 14, 16)[0] == pytest.approx(115.901, abs=5e-4)
    assert statistics.attention_entropy(with_cls, 196).mean() == pytest.approx(math.log(197), rel=1e-12)


def test_decomposition_adds_up(clip):
    learnables = methods.random_learnables(clip.config, "vpt", 5, vision=3)
    images = helpers.random_images(clip.config, 2)
    tower = numpy_clip.encode_image(clip.state, clip.config, images, prompts=learnables["vision_prompts"])
    for layer, block in enumerate(tower.blocks):
        parts = statistics.decomposition(clip, "vision", layer, block, slice(5, None))
        np.testing.assert_allclose(parts["input"] + parts["prompt"] + parts["bias"], block.attended, rtol=1e-10)


def test_rollout_rows_are_distributions(clip):
    blocks = numpy_clip.encode_image(clip.state, clip.config, helpers.random_images(clip.config, 1)).blocks
    rolled = relevancy.rollout([block.attention[0] for block in blocks])
    np.testing.assert_allclose(rolled.sum(-1), 1, rtol=1e-12)
