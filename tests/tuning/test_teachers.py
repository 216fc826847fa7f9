"""KgCoOp, ProGrad and PromptSRC against NumPy: terms of the loss, gradients, steps, contexts and teachers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.tuning import Task, make_method
from clipbias.tuning.prompts import imagenet_full
from tests.reference import methods, numpy_clip, teachers, weights
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES, LABELS

OWN = "a painting of a {}, a type of cat."
WITH_COMMA = "a type of cat, a photo of a {}."


def case(name: str, reference: methods.Reference):
    """A method's options, start, what goes into the towers, and the terms of the loss of a forward pass."""
    if name == "kgcoop":
        start = methods.random_learnables(reference.config, "coop", len(CLASS_NAMES))
        losses = functools.partial(teachers.kgcoop_losses, reference, class_names=CLASS_NAMES, template=OWN)
        return {}, start, functools.partial(methods.prepare, reference, "coop"), losses
    if name == "prograd":
        noise = 0.3 * weights.deterministic_uniform(11, 0, (9, 16))
        start = {"text_context": teachers.prograd_context(reference, WITH_COMMA, count=9) + noise}
        inputs = functools.partial(teachers.prograd_inputs, reference, template=WITH_COMMA)
        losses = functools.partial(
            teachers.prograd_losses, reference, class_names=CLASS_NAMES, template=WITH_COMMA, temperature=2.0
        )
        return {"template": WITH_COMMA, "tokens": 9, "strength": 0.8, "temperature": 2.0}, start, inputs, losses
    start = methods.random_learnables(reference.config, "ivlp", len(CLASS_NAMES), text_depth=2, vision_depth=2)
    images = common.pictures(reference.config["vision_config"]["image_size"])[1]
    teacher = teachers.promptsrc_teacher(reference, CLASS_NAMES, images, imagenet_full()[:60])
    losses = functools.partial(teachers.promptsrc_losses, reference, teacher=teacher)
    return {"depth": 2}, start, functools.partial(methods.prepare, reference, "ivlp"), losses


@pytest.mark.ci
@pytest.mark.parametrize("name", ["kgcoop", "prograd", "promptsrc"])
def test_training_equals_numpy(name, pair) -> None:
    clip, reference = pair
    options, start, inputs, losses = case(name, reference)
    task = Task(clip, make_method(name, **options), CLASS_NAMES, template=OWN)

    def rule(values, step):
        saved = methods.forward(reference, inputs(class_names=CLASS_NAMES, learnables=values), step.images)
        return losses(saved, labels=LABELS), saved.logits

    def projected(gradients):
        return teachers.project(*gradients, strength=0.8)

    training = common.Training(combine=projected if name == "prograd" else None)
    run = common.check_training(task, jax.tree.map(np.float32, start), rule, training)
    # What is masked does not count.
    images = run.batch["images"][0]
    mask = np.array([True, True, False, False])
    other = np.concatenate([images[:2], 255 - images[2:]])
    alone, two = (run.taken(run.first, run.step(run.first, 0.03, images=x, mask=mask)[0]) for x in (images, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), alone, two)
    whole = run.taken(run.first, run.step(run.first, 0.03)[0])
    assert np.abs(alone["text_context"] - whole["text_context"]).max() > 1e-3


# ProGrad's context and projection, and the teachers' templates.


@pytest.mark.parametrize("template", [WITH_COMMA, None])
def test_prograd_starts_from_as_many_tokens_as_the_template_has_words(pair, template) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=template), CLASS_NAMES, template=OWN)
    template = template or "a photo of a {}."
    context = teachers.prograd_context(reference, template)
    np.testing.assert_allclose(task.init()["text_context"], context, atol=1e-7)
    inputs = teachers.prograd_inputs(reference, CLASS_NAMES, {"text_context": context}, template)
    for ids, expected in zip(task.tokens.ids, inputs.tokens, strict=True):
        end = expected.argmax() + 1
        np.testing.assert_array_equal(ids[:end], expected[:end])
    np.testing.assert_array_equal(task.tokens.context_rows[:, 1:17], np.tile(np.arange(16), (len(CLASS_NAMES), 1)))
    assert (task.tokens.context_rows[:, 17:] == -1).all()


def test_a_context_shorter_than_prograds_words_takes_the_first_of_them(pair) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=WITH_COMMA, tokens=3), CLASS_NAMES)
    ids = reference.tokenizer.tokenize([WITH_COMMA.replace("{}", "x")])[0]
    np.testing.assert_array_equal(task.tokens.ids[:, 1:10], np.tile(ids[1:10], (len(CLASS_NAMES), 1)))
    embeddings = numpy_clip.token_embeddings(reference.state, ids[1:4])
    np.testing.assert_allclose(task.init()["text_context"], embeddings, atol=1e-7)


def test_prograd_projects_each_array_by_itself_and_leaves_the_gradient_where_the_teacher_has_none() -> None:
    method = make_method("prograd")
    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    teacher = {"a": -gradients["a"] + rng.normal(size=(3, 4)), "b": gradients["b"] + 0.1}
    as_arrays = lambda tree: {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}  # noqa: E731
    for scale, strength in ((1.0, 1.0), (1.0, 0.8), (1e-25, 1.0)):  # whose squares are zero in float32
        scaled = {name: scale * value for name, value in teacher.items()}
        weighted = make_method("prograd", strength=strength) if strength < 1 else method
        combined = weighted.combine({"cross_entropy": as_arrays(gradients), "kl": as_arrays(scaled)})
        for name, value in teachers.project(gradients, teacher, strength=strength).items():
            np.testing.assert_allclose(combined[name], value, atol=1e-6)
    zero = {name: np.zeros_like(value) for name, value in gradients.items()}
    combined = method.combine({"cross_entropy": as_arrays(gradients), "kl": as_arrays(zero)})
    for name, value in gradients.items():
        np.testing.assert_array_equal(combined[name], value.astype(np.float32))
