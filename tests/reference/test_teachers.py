"""The references of methods that learn from a teacher agree with themselves and with known values."""

import numpy as np
import pytest

from tests import helpers
from tests.reference import methods, numpy_clip, teachers
from tests.reference.cases import CLASS_NAMES

LABELS = np.array([4, 0, 2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    return helpers.tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision=(16, 2, 2), image_size=8)


@pytest.fixture(scope="module")
def images(clip):
    return helpers.random_images(clip.config, len(LABELS))


# KgCoOp

TEMPLATE = "a photo of a {}, a type of painting."


def test_kgcoop_is_coop_with_a_term_that_vanishes_at_its_teacher(clip, images):
    words = clip.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    start = {"text_context": numpy_clip.token_embeddings(clip.state, words)}
    saved = methods.forward(clip, methods.prepare(clip, "coop", CLASS_NAMES, start), images)
    losses = teachers.kgcoop_losses(clip, saved, CLASS_NAMES, LABELS, template=methods.WORDED)
    assert losses["distillation"] == pytest.approx(0, abs=1e-12)
    plain, _ = methods.losses(clip, "coop", CLASS_NAMES, start, images, LABELS)
    assert losses["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=1e-12)
    assert 0 < teachers.kgcoop_losses(clip, saved, CLASS_NAMES, LABELS, template=TEMPLATE)["distillation"] < 16


# ProGrad

WITH_COMMA = "a type of cat, a photo of a {}."


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> methods.Reference:
    folder = tmp_path_factory.mktemp("long")
    return helpers.tiny_checkpoint(folder, vision=(16, 2, 2), image_size=8, context_length=40)


def test_prograd_starts_at_zeros_and_then_as_many_tokens_as_words(long_clip):
    context = teachers.prograd_context(long_clip, "a photo of a {}.")
    assert context.shape == (16, 16) and not context[:12].any()
    words = long_clip.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    np.testing.assert_array_equal(context[12:], numpy_clip.token_embeddings(long_clip.state, words))


def test_prograd_counts_a_comma_as_a_token_but_not_as_a_word(long_clip):
    tokens = long_clip.tokenizer.tokenize(["a type of cat, a photo of a"])[0]
    assert list(tokens).index(tokens.max()) == 1 + 9
    context = teachers.prograd_context(long_clip, WITH_COMMA)
    assert not context[:8].any() and context[8:].any(axis=1).all()
    np.testing.assert_array_equal(context[8:], numpy_clip.token_embeddings(long_clip.state, tokens[1:9]))
    inputs = teachers.prograd_inputs(long_clip, ["dog"], {"text_context": context}, WITH_COMMA)
    np.testing.assert_array_equal(inputs.embeddings[0, 1:17], context)
    # The last "a" stays, then come the name, the full stop and the end.
    expected = long_clip.tokenizer.encode("a dog.")
    assert list(inputs.tokens[0, 17 : 17 + len(expected)]) == expected
    assert inputs.tokens[0].argmax() == 17 + len(expected)
    embeddings = numpy_clip.token_embeddings(long_clip.state, inputs.tokens)
    np.testing.assert_array_equal(inputs.embeddings[0, 17:], embeddings[0, 17:])


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_prograd_takes_out_what_opposes_the_teacher(strength):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 5))
    for sign in (1, -1):
        projected = teachers.project({"x": a}, {"x": sign * b}, strength=strength)["x"]
        along = sign * (a * b).sum()
        if along > 0:
            np.testing.assert_array_equal(projected, a)
        else:
            assert sign * (projected * b).sum() == pytest.approx((1 - strength) * along, abs=1e-12)
            across = projected - a
            np.testing.assert_allclose(across, b * (across * b).sum() / (b * b).sum(), atol=1e-12)


def test_prograd_projects_each_array_by_itself():
    a, b = np.array([1.0, -2.0]), np.array([0.0, 3.0])
    projected = teachers.project({"x": a, "y": a}, {"x": b, "y": -b})
    np.testing.assert_allclose(projected["x"], [1.0, 0.0])
    np.testing.assert_array_equal(projected["y"], a)


# PromptSRC

TEMPLATES = ("a photo of a {}.", "a satellite photo of the {}.", "a painting of a {}.")


def test_promptsrcs_teacher_averages_before_it_normalises(clip, images):
    single = teachers.raw_ensemble(clip, CLASS_NAMES, TEMPLATES[:1])
    np.testing.assert_allclose(single, numpy_clip.unit(teachers.plain_text(clip, CLASS_NAMES, TEMPLATES[0])))
    raw = [teachers.plain_text(clip, CLASS_NAMES, template) for template in TEMPLATES]
    ensemble = teachers.raw_ensemble(clip, CLASS_NAMES, TEMPLATES)
    np.testing.assert_allclose(np.linalg.norm(ensemble, axis=-1), 1)
    np.testing.assert_allclose(ensemble, numpy_clip.unit(sum(raw)), rtol=1e-12)
    usual = numpy_clip.unit(sum(numpy_clip.unit(features) for features in raw))
    assert 1e-4 < np.abs(ensemble - usual).max() < 0.1


def test_promptsrcs_terms_vanish_at_the_teacher_and_grow_with_their_weights(clip, images):
    saved = methods.forward(clip, methods.prepare(clip, "zero_shot", CLASS_NAMES, {}), images)
    teacher = teachers.promptsrc_teacher(clip, CLASS_NAMES, images, [methods.WORDED])
    losses = teachers.promptsrc_losses(clip, saved, teacher, LABELS)
    assert losses["cross_entropy"] == numpy_clip.cross_entropy(saved.logits, LABELS)
    assert [losses[name] for name in ("text", "image", "kl")] == pytest.approx([0, 0, 0], abs=1e-12)
    other = teachers.promptsrc_teacher(clip, CLASS_NAMES, -images, TEMPLATES)
    losses = teachers.promptsrc_losses(clip, saved, other, LABELS)
    once = teachers.promptsrc_losses(clip, saved, other, LABELS, text_weight=1, image_weight=1)
    assert losses["text"] == pytest.approx(25 * once["text"]) and once["text"] > 1e-3
    assert losses["image"] == pytest.approx(10 * once["image"]) and once["image"] > 1e-3
    # A mean over images of the divergence, over the number of classes as well.
    p, q = (
        numpy_clip.softmax(saved.logits),
        numpy_clip.softmax(numpy_clip.logits(clip.state, other["image"], other["text"])),
    )
    divergences = [(b * np.log(b / a)).sum() for a, b in zip(p, q, strict=True)]
    assert losses["kl"] == pytest.approx(np.mean(divergences) / len(CLASS_NAMES), rel=1e-10)


def test_promptsrcs_average_weighs_epochs_by_a_gaussian():
    weighting = teachers.gaussian_weights(20, 15, 1)
    assert weighting.sum() == pytest.approx(1, rel=1e-12) and weighting.argmax() == 15 - 1
    assert weighting[15] / weighting[14] == pytest.approx(np.exp(-0.5), rel=1e-12)
    theta = {"x": np.array([[1.0, -2.0]])}
    np.testing.assert_allclose(teachers.average([theta] * 20, weighting)["x"], theta["x"], rtol=1e-12)
    line = [{"x": np.array([float(e)])} for e in range(1, 4)]
    assert teachers.average(line, teachers.gaussian_weights(3, 2, 0.7))["x"] == pytest.approx(2.0)
    assert teachers.average(line, teachers.gaussian_weights(3, 3, 1e-2))["x"] == pytest.approx(3.0)
