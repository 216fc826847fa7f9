"""KgCoOp, ProGrad and PromptSRC against NumPy: terms of the loss, gradients, steps, contexts and teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.tuning import Task, make_method
from clipbias.tuning.templates import imagenet_full
from tests.reference import methods, numpy_clip, teachers, weights
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES, LABELS

OWN = "a painting of a {}, a type of cat."
WITH_COMMA = "a type of cat, a photo of a {}."


def case(name: str, reference: methods.Reference):
    """A method's options, start, and NumPy's terms and gradients of learnables and images."""
    arguments = (reference, CLASS_NAMES)
    if name == "kgcoop":
        start = methods.random_learnables(reference.config, "coop", len(CLASS_NAMES))
        return {}, start, lambda x, i: teachers.kgcoop_loss_and_gradients(*arguments, x, i, LABELS, template=OWN)
    if name == "prograd":
        noise = 0.3 * weights.deterministic_uniform(11, 0, (16, 16))
        start = {"text_context": teachers.prograd_context(reference, WITH_COMMA) + noise}
        options = {"strength": 0.8, "temperature": 2.0}

        def prograd(x, i):
            return teachers.prograd_loss_and_gradients(*arguments, x, i, LABELS, template=WITH_COMMA, **options)[:2]

        return {"template": WITH_COMMA, **options}, start, prograd
    start = methods.random_learnables(reference.config, "ivlp", len(CLASS_NAMES), text_depth=2, vision_depth=2)
    sixty = imagenet_full()[:60]
    return (
        {"depth": 2},
        start,
        lambda x, i: teachers.promptsrc_loss_and_gradients(*arguments, x, i, LABELS, templates=sixty),
    )


@pytest.mark.parametrize("name", ["kgcoop", "prograd", "promptsrc"])
def test_training_equals_numpy(name, pair) -> None:
    clip, reference = pair
    options, start, expected = case(name, reference)
    task = Task(clip, make_method(name, **options), CLASS_NAMES, template=OWN)

    def rule(values, images, _):
        if name == "prograd":
            inputs = teachers.prograd_inputs(reference, CLASS_NAMES, values, WITH_COMMA)
        else:
            inputs = methods.prepare(reference, {"kgcoop": "coop"}.get(name, "ivlp"), CLASS_NAMES, values)
        return *expected(values, images), methods.forward(reference, inputs, images).logits

    run = common.check_training(task, jax.tree.map(np.float32, start), rule)
    # What is masked does not count.
    images, mask = run.batch["images"][0], np.array([True, True, False, False])
    other = np.concatenate([images[:2], 255 - images[2:]])
    one, two = (run.taken(run.step(run.first, 0.03, images=x, mask=mask)[0]) for x in (images, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), one, two)
    assert np.abs(one["text_context"] - run.taken(run.step(run.first, 0.03)[0])["text_context"]).max() > 1e-3


# ProGrad's context and projection, and the teachers' templates.


@pytest.mark.parametrize("template", [WITH_COMMA, "a satellite photo of {}."])
def test_prograd_starts_from_as_many_tokens_as_the_template_has_words(pair, template) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=template), CLASS_NAMES, template=OWN)
    context = teachers.prograd_context(reference, template)
    np.testing.assert_allclose(task.init()["text_context"], context, atol=1e-7)
    inputs = teachers.prograd_inputs(reference, CLASS_NAMES, {"text_context": context}, template)
    for ids, expected in zip(task.tokens.ids, inputs.tokens, strict=True):
        end = expected.argmax() + 1
        np.testing.assert_array_equal(ids[:end], expected[:end])
    np.testing.assert_array_equal(task.tokens.context_rows[:, 1:17], np.tile(np.arange(16), (len(CLASS_NAMES), 1)))
    assert (task.tokens.context_rows[:, 17:] == -1).all()


def test_prograd_on_other_datasets_starts_from_a_photo_and_asks_the_datasets_own_template(pair) -> None:
    clip, reference = pair
    task = Task(clip, "prograd", CLASS_NAMES, template=OWN)
    np.testing.assert_allclose(
        task.init()["text_context"], teachers.prograd_context(reference, "a photo of a {}."), atol=1e-7
    )
    np.testing.assert_allclose(
        task.teacher_features(clip.params), teachers.plain_text(reference, CLASS_NAMES, OWN), atol=1e-5
    )


def test_a_context_shorter_than_prograds_words_takes_the_first_of_them(pair) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=WITH_COMMA, tokens=3), CLASS_NAMES)
    ids = reference.tokenizer.tokenize([WITH_COMMA.replace("{}", "x")])[0]
    np.testing.assert_array_equal(task.tokens.ids[:, 1:10], np.tile(ids[1:10], (len(CLASS_NAMES), 1)))
    own = numpy_clip.token_embeddings(reference.state, ids[1:4])
    np.testing.assert_allclose(task.init()["text_context"], own, atol=1e-7)


def test_prograd_projects_each_array_by_itself_and_leaves_the_gradient_where_the_teacher_has_none() -> None:
    method, rng = make_method("prograd"), np.random.default_rng(0)
    own = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    teacher = {"a": -own["a"] + rng.normal(size=(3, 4)), "b": own["b"] + 0.1}
    as_arrays = lambda tree: {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}  # noqa: E731
    for scale, strength in ((1.0, 1.0), (1.0, 0.8), (1e-25, 1.0)):  # whose squares are zero in float32
        scaled = {name: scale * value for name, value in teacher.items()}
        weighted = make_method("prograd", strength=strength) if strength < 1 else method
        found = weighted.combine({"cross_entropy": as_arrays(own), "kl": as_arrays(scaled)})
        for name, value in teachers.project(own, teacher, strength=strength).items():
            np.testing.assert_allclose(found[name], value, atol=1e-6)
    zero = {name: np.zeros_like(value) for name, value in own.items()}
    found = method.combine({"cross_entropy": as_arrays(own), "kl": as_arrays(zero)})
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32))


def test_the_teachers_template_of_kgcoop(pair) -> None:
    clip, reference = pair
    for method, template in (
        ("kgcoop", OWN),
        (make_method("kgcoop", template="a type of {} texture."), "a type of {} texture."),
    ):
        found = Task(clip, method, CLASS_NAMES, template=OWN).teacher_features(clip.params)
        np.testing.assert_allclose(found, teachers.plain_text(reference, CLASS_NAMES, template), atol=1e-5)
