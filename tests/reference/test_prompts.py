"""The references of several prompts and of prompts per image agree with themselves and with known values."""

import numpy as np
import pytest

from tests import helpers
from tests.reference import gradients, methods, prompts_cocoop, weights
from tests.reference.cases import CLASS_NAMES
from tests.reference.differences import against_differences

LABELS = np.array([4, 0, 2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    folder = tmp_path_factory.mktemp("prompts")
    return helpers.tiny_checkpoint(folder, vision=(16, 2, 2), image_size=8, projection=48, context_length=40)


@pytest.fixture(scope="module")
def images(clip):
    return helpers.random_images(clip.config, len(LABELS))


def cocoop_start(clip) -> dict[str, np.ndarray]:
    width, joint = clip.config["text_config"]["hidden_size"], clip.config["projection_dim"]
    shapes = {
        "text_context": (4, width),
        "text_hidden_kernel": (joint, joint // 16),
        "text_hidden_bias": (joint // 16,),
        "text_output_kernel": (joint // 16, width),
        "text_output_bias": (width,),
    }
    return {
        name: 0.3 * weights.deterministic_uniform(51, stream, shape)
        for stream, (name, shape) in enumerate(shapes.items())
    }


def test_cocoop_without_a_shift_is_coop(clip, images):
    start = cocoop_start(clip)
    still = {name: value if name == "text_context" else 0 * value for name, value in start.items()}
    plain = {"text_context": start["text_context"]}
    found = prompts_cocoop.logits(clip, CLASS_NAMES, still, images)
    np.testing.assert_allclose(found, methods.task_logits(clip, "coop", CLASS_NAMES, plain, images), rtol=1e-12)
    _, found = prompts_cocoop.loss_and_gradients(clip, CLASS_NAMES, still, images, LABELS)
    _, expected = gradients.loss_and_gradients(clip, "coop", CLASS_NAMES, plain, images, LABELS)
    np.testing.assert_allclose(found["text_context"], expected["text_context"], atol=1e-12)


def test_cocoops_shift_is_one_vector_for_all_tokens_and_differs_between_images(clip, images):
    start = cocoop_start(clip)
    moved = prompts_cocoop.logits(clip, CLASS_NAMES, start, images)
    for b in range(len(images)):
        feature = prompts_cocoop.numpy_clip.encode_image(clip.state, clip.config, images[b : b + 1]).features[0]
        context = start["text_context"] + prompts_cocoop.shift(start, feature)[0]
        alone = methods.task_logits(clip, "coop", CLASS_NAMES, {"text_context": context}, images)
        np.testing.assert_allclose(alone[b], moved[b], rtol=1e-12)
        assert np.abs(alone - moved).max() > 1e-3


def test_gradients_of_cocoop_equal_finite_differences(clip, images):
    start = cocoop_start(clip)

    def loss(learnables):
        scores = prompts_cocoop.logits(clip, CLASS_NAMES, learnables, images)
        return prompts_cocoop.numpy_clip.cross_entropy(scores, LABELS)

    losses, found = prompts_cocoop.loss_and_gradients(clip, CLASS_NAMES, start, images, LABELS)
    assert losses["cross_entropy"] == pytest.approx(loss(start), rel=1e-12)
    assert max(against_differences(loss, start, found, directions=2).values()) < 1e-6
