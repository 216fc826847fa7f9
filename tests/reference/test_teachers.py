"""The references of methods that learn from a teacher agree with themselves and with known values."""

import numpy as np
import pytest

from tests import helpers
from tests.reference import gradients, methods, numpy_clip, optimizers, teachers, weights
from tests.reference.cases import CLASS_NAMES
from tests.reference.differences import against_differences

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
    arguments = (clip, CLASS_NAMES, start, images, LABELS)
    losses, found = teachers.kgcoop_loss_and_gradients(*arguments, template=methods.WORDED)
    assert losses["distillation"] == pytest.approx(0, abs=1e-12)
    loss, plain = gradients.loss_and_gradients(clip, "coop", CLASS_NAMES, start, images, LABELS)
    assert losses["cross_entropy"] == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(found["text_context"], plain["text_context"], atol=1e-12)
    losses, found = teachers.kgcoop_loss_and_gradients(*arguments, template=TEMPLATE)
    assert 0 < losses["distillation"] < 16
    assert np.abs(found["text_context"] - plain["text_context"]).max() > 1e-3


@pytest.mark.long  # the package's own gradients are compared with these
def test_gradient_of_kgcoop_equals_finite_differences(clip, images):
    learnables = methods.random_learnables(clip.config, "coop", len(CLASS_NAMES))

    def loss(learnables):
        saved = methods.forward(clip, methods.prepare(clip, "coop", CLASS_NAMES, learnables), images)
        return sum(teachers.kgcoop_losses(clip, saved, CLASS_NAMES, LABELS, template=TEMPLATE).values())

    losses, found = teachers.kgcoop_loss_and_gradients(clip, CLASS_NAMES, learnables, images, LABELS, template=TEMPLATE)
    assert sum(losses.values()) == pytest.approx(loss(learnables), rel=1e-12)
    assert max(against_differences(loss, learnables, found, directions=2).values()) < 1e-6


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
    own = numpy_clip.token_embeddings(long_clip.state, inputs.tokens)
    np.testing.assert_array_equal(inputs.embeddings[0, 17:], own[0, 17:])


def prograd_start(clip):
    noise = 0.3 * weights.deterministic_uniform(11, 0, (16, clip.config["text_config"]["hidden_size"]))
    return {"text_context": teachers.prograd_context(clip, WITH_COMMA) + noise}


@pytest.mark.long  # the package's own gradients are compared with these
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_of_prograds_losses_equal_finite_differences(long_clip, images, temperature):
    learnables, labels = prograd_start(long_clip), LABELS
    options = {"template": WITH_COMMA, "temperature": temperature}
    losses, _, each = teachers.prograd_loss_and_gradients(long_clip, CLASS_NAMES, learnables, images, labels, **options)
    for name in losses:

        def loss(learnables, name=name):
            inputs = teachers.prograd_inputs(long_clip, CLASS_NAMES, learnables, WITH_COMMA)
            saved = methods.forward(long_clip, inputs, images)
            return teachers.prograd_losses(long_clip, saved, CLASS_NAMES, labels, **options)[name]

        assert losses[name] == pytest.approx(loss(learnables), rel=1e-12)
        assert max(against_differences(loss, learnables, each[name], directions=2).values()) < 1e-6


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_prograd_takes_out_what_opposes_the_teacher(long_clip, images, strength):
    learnables, seen = prograd_start(long_clip), set()
    # Some labels pull against the teacher and some along with it.
    for label in range(len(CLASS_NAMES)):
        _, found, each = teachers.prograd_loss_and_gradients(
            long_clip,
            CLASS_NAMES,
            learnables,
            images,
            np.full(len(images), label),
            template=WITH_COMMA,
            strength=strength,
        )
        a, b = each["cross_entropy"]["text_context"], each["kl"]["text_context"]
        along = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert abs(along) > 1e-3
        seen.add(along < 0)
        if along < 0:
            left = (found["text_context"] * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
            assert left == pytest.approx((1 - strength) * along, abs=1e-12)
            across = found["text_context"] - a
            np.testing.assert_allclose(across, b * (across * b).sum() / (b * b).sum(), atol=1e-12)
        else:
            np.testing.assert_array_equal(found["text_context"], a)
    assert seen == {True, False}


def test_prograd_projects_each_array_by_itself():
    a, b = np.array([1.0, -2.0]), np.array([0.0, 3.0])
    found = teachers.project({"x": a, "y": a}, {"x": b, "y": -b})
    np.testing.assert_allclose(found["x"], [1.0, 0.0])
    np.testing.assert_array_equal(found["y"], a)


# PromptSRC

TEMPLATES = ("a photo of a {}.", "a satellite photo of the {}.", "a painting of a {}.")


def test_promptsrcs_teacher_averages_before_it_normalises(clip, images):
    one = teachers.raw_ensemble(clip, CLASS_NAMES, TEMPLATES[:1])
    np.testing.assert_allclose(one, numpy_clip.unit(teachers.plain_text(clip, CLASS_NAMES, TEMPLATES[0])))
    raw = [teachers.plain_text(clip, CLASS_NAMES, template) for template in TEMPLATES]
    found = teachers.raw_ensemble(clip, CLASS_NAMES, TEMPLATES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    np.testing.assert_allclose(found, numpy_clip.unit(sum(raw)), rtol=1e-12)
    usual = numpy_clip.unit(sum(numpy_clip.unit(features) for features in raw))
    assert 1e-4 < np.abs(found - usual).max() < 0.1


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


@pytest.mark.long  # the package's own gradients are compared with these
@pytest.mark.parametrize("term", ["all", "text", "image"])
def test_gradients_of_promptsrc_equal_finite_differences(clip, images, term):
    learnables = methods.random_learnables(clip.config, "ivlp", len(CLASS_NAMES), text_depth=2, vision_depth=2)
    options = {"text_weight": 25 * (term != "image"), "image_weight": 10 * (term != "text")}
    teacher = teachers.promptsrc_teacher(clip, CLASS_NAMES, images, TEMPLATES)

    def loss(learnables):
        saved = methods.forward(clip, methods.prepare(clip, "ivlp", CLASS_NAMES, learnables), images)
        return sum(teachers.promptsrc_losses(clip, saved, teacher, LABELS, **options).values())

    losses, found = teachers.promptsrc_loss_and_gradients(
        clip, CLASS_NAMES, learnables, images, LABELS, templates=TEMPLATES, **options
    )
    assert sum(losses.values()) == pytest.approx(loss(learnables), rel=1e-12)
    errors = against_differences(loss, learnables, found, directions=2, step=1e-6)
    assert set(errors) == set(learnables) and max(errors.values()) < 1e-6


def test_promptsrcs_average_weighs_epochs_by_a_gaussian():
    weighting = teachers.gaussian_weights(20, 15, 1)
    assert weighting.sum() == pytest.approx(1, rel=1e-12) and weighting.argmax() == 15 - 1
    assert weighting[15] / weighting[14] == pytest.approx(np.exp(-0.5), rel=1e-12)
    theta = {"x": np.array([[1.0, -2.0]])}
    np.testing.assert_allclose(teachers.average([theta] * 20, weighting)["x"], theta["x"], rtol=1e-12)
    line = [{"x": np.array([float(e)])} for e in range(1, 4)]
    assert teachers.average(line, teachers.gaussian_weights(3, 2, 0.7))["x"] == pytest.approx(2.0)
    assert teachers.average(line, teachers.gaussian_weights(3, 3, 1e-2))["x"] == pytest.approx(3.0)


def test_promptsrc_averages_what_follows_each_epoch_and_steps_on_without_it(clip, images):
    learnables = methods.random_learnables(clip.config, "ivlp", len(CLASS_NAMES), text=2, vision=2)

    def gradient(learnables):
        return teachers.promptsrc_loss_and_gradients(
            clip, CLASS_NAMES, learnables, images, LABELS, templates=TEMPLATES
        )[1]

    rates, optimizer = optimizers.warmed_cosine_rates(0.0025, 3), optimizers.SGD()
    epochs, values = [], weights.double(learnables)
    for rate in rates:
        values = optimizers.run(optimizer, gradient, values, [rate] * 2)
        epochs.append(values)
    straight = optimizers.run(optimizers.SGD(), gradient, learnables, np.repeat(rates, 2))
    averaged = teachers.average(epochs, teachers.gaussian_weights(3, 2, 1))
    for name, value in straight.items():
        np.testing.assert_array_equal(epochs[-1][name], value)
        assert (averaged[name] != value).any()
