"""The references of several prompts and of prompts per image agree with themselves and with known values."""

import numpy as np
import pytest

from tests import helpers
from tests.reference import methods, numpy_clip, prompts_cocoop, prompts_plot, prompts_proda, weights
from tests.reference.cases import CLASS_NAMES

LABELS = np.array([4, 0, 2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    folder = tmp_path_factory.mktemp("prompts")
    return helpers.tiny_checkpoint(folder, vision=(16, 2, 2), image_size=8, projection=48, context_length=40)


@pytest.fixture(scope="module")
def images(clip):
    return helpers.random_images(clip.config, len(LABELS))


def cocoop_start(clip) -> dict[str, np.ndarray]:
    width = clip.config["text_config"]["hidden_size"]
    joint = clip.config["projection_dim"]
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
    logits = prompts_cocoop.logits(clip, CLASS_NAMES, still, images)
    np.testing.assert_allclose(logits, methods.task_logits(clip, "coop", CLASS_NAMES, plain, images), rtol=1e-12)


def test_cocoops_shift_is_one_vector_for_all_tokens_and_differs_between_images(clip, images):
    start = cocoop_start(clip)
    moved = prompts_cocoop.logits(clip, CLASS_NAMES, start, images)
    for b in range(len(images)):
        feature = numpy_clip.encode_image(clip.state, clip.config, images[b : b + 1]).features[0]
        context = start["text_context"] + prompts_cocoop.shift(start, feature)
        alone = methods.task_logits(clip, "coop", CLASS_NAMES, {"text_context": context}, images)
        np.testing.assert_allclose(alone[b], moved[b], rtol=1e-12)
        assert np.abs(alone - moved).max() > 1e-3


# PLOT


def test_plans_have_the_sums_that_are_asked_for_and_prefer_what_is_alike():
    rng = np.random.default_rng(1)
    similarity = prompts_plot.similarities(rng.normal(size=(6, 2, 8)), rng.normal(size=(3, 4, 8)))
    plans, rounds = prompts_plot.plans(similarity)
    assert rounds > 1
    np.testing.assert_allclose(plans.sum(2), 1 / 3, atol=1e-12)  # columns were set last
    np.testing.assert_allclose(plans.sum(3), 1 / 6, atol=0.02)
    # None has a smaller cost with entropy: `log Π` is `-cost/ε` up to what belongs to rows and columns.
    rest = np.log(plans) + (1 - similarity) / 0.1
    for axis in (2, 3):
        rest = rest - rest.mean(axis, keepdims=True)
    np.testing.assert_allclose(rest, 0, atol=1e-9)


def test_transport_of_features_that_are_all_alike_is_the_cosine():
    rng = np.random.default_rng(2)
    image, text = rng.normal(size=(1, 3, 8)), rng.normal(size=(1, 4, 8))
    clip = methods.Reference({"logit_scale": np.array(2.0)}, {}, None)
    logits = prompts_plot.transport_logits(clip, np.repeat(image, 5, axis=0), np.repeat(text, 4, axis=0))
    np.testing.assert_allclose(logits, numpy_clip.logits(clip.state, image[0], text[0]), rtol=1e-12)


# PLOT++

PHRASES = ("a photo of a", "photo of the dog type", "of a cat")


def test_phrases_of_plot_plus_plus(clip):
    assert prompts_plot.phrase_texts(clip, PHRASES) == [*PHRASES[:2], "of a cat X"]
    context = prompts_plot.start_context(clip, PHRASES)
    words = numpy_clip.token_embeddings(clip.state, clip.tokenizer.tokenize(["photo of the dog type"]))
    np.testing.assert_array_equal(context[1], words[0, 1:5])


# ProDA


def proda_start(clip, prompts=4):
    shape = (prompts, 4, clip.config["text_config"]["hidden_size"])
    return {"text_context": 0.3 * weights.deterministic_uniform(54, 0, shape)}


def test_proda_of_a_single_prompt_is_coop(clip, images):
    start = proda_start(clip, 1)
    context = {"text_context": start["text_context"][0]}
    expected = methods.task_logits(clip, "coop", CLASS_NAMES, context, images, worded=False)
    np.testing.assert_allclose(prompts_proda.logits(clip, CLASS_NAMES, start, images), expected, rtol=1e-12)
    losses, _ = prompts_proda.losses(clip, CLASS_NAMES, start, images, LABELS, [0])
    assert losses["orthogonality"] == 0
    assert losses["bound"] == pytest.approx(numpy_clip.cross_entropy(expected, LABELS), rel=1e-12)


def test_proda_bounds_the_loss_of_its_means_from_above(clip, images):
    losses, means = prompts_proda.losses(clip, CLASS_NAMES, proda_start(clip), images, LABELS, range(4))
    plain = prompts_proda.logits(clip, CLASS_NAMES, proda_start(clip), images)
    np.testing.assert_allclose(means, plain, rtol=1e-12)
    assert losses["bound"] > numpy_clip.cross_entropy(plain, LABELS)
    assert [prompts_proda.position(p, 8) for p in range(8)] == ["front"] * 2 + ["middle"] * 2 + ["end"] * 4
