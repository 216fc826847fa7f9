"""Relevancy and its rivals against the full matrices of the plain NumPy reference, and against the plain taps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from clipbias.analysis.relevancy import REDUCTIONS, MapOptions, explanations, relevancy
from clipbias.training import placement
from clipbias.tuning import Task
from tests import helpers, own_methods
from tests.analysis.models import CLASS_NAMES, moved, tuned
from tests.analysis.plain_relevancy import plain_relevancy
from tests.reference import cases, methods
from tests.reference import relevancy as plain
from tools import benchmark as model

TOLERANCE = 2e-5  # of a row's largest number, in float32
CLASSES = np.array([2, 0, 4])

# Those whose explanation differs by more than the depth of the prompts.
EXPLAINED = {
    "coop_class_specific": {"tokens": 4, "class_specific": True, "words": ""},
    "vpt_two_layers": {"tokens": 3, "depth": 2},
    "ivlp": {},
    "maple_two_layers": {"tokens": 2, "depth": 2},
    "taskres": {},
    "bias_by_kind": {},
}
SHORT = ("coop_class_specific",)  # beside the rivals; `test_sections` has zero-shot and IVLP in two layers


def bind(clip, reference, name):
    """The task of a case, and learnables that are not zero."""
    case = cases.CASES.get(name) or cases.Case(name)
    template = case.options.get("template", methods.WORDED)
    task = Task(clip, case.method, cases.CLASS_NAMES, template=template, **EXPLAINED[name])
    return task, case, methods.random_learnables(reference.config, case.method, len(cases.CLASS_NAMES), **case.sizes)


def assert_rows_equal(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() < TOLERANCE * np.abs(expected).max()


# Those whose rivals of relevancy are compared too, from what first layer.
RIVALS = {"ivlp": 1, "bias_by_kind": 0}


@pytest.mark.parametrize("name", helpers.short(EXPLAINED, *SHORT, *RIVALS))
def test_maps_equal_the_full_matrices(name, clip, reference):
    task, case, learnables = bind(clip, reference, name)
    images = helpers.random_images(reference.config, len(CLASSES), seed=1)
    maps = tuple(REDUCTIONS) if name in RIVALS else ("relevancy",)
    start = RIVALS.get(name, 0)
    arguments = (task, clip.params, learnables, images, CLASSES)
    maps_by_kind = jax.device_get(explanations(*arguments, MapOptions(maps, start)))
    inputs = methods.prepare(reference, case.method, cases.CLASS_NAMES, learnables, **case.options)
    for i, target in enumerate(CLASSES):
        pair = plain.pair(reference, inputs, images[i], target)
        assert float(maps_by_kind["relevancy"].scores[i]) == pytest.approx(pair.score, rel=1e-5)
        expected = {"relevancy": plain.relevancy(reference, inputs, images[i], target, start_layer=start)}
        if name in RIVALS:
            expected["grad_eclip"] = plain.grad_eclip(reference, inputs, images[i], target)
        for kind, (vision, text) in expected.items():
            assert_rows_equal(maps_by_kind[kind].vision[i], vision)
            assert_rows_equal(maps_by_kind[kind].text[i, : len(text)], text)
            assert not maps_by_kind[kind].text[i, len(text) :].any()
        for tower, row, columns, queries in (
            ("vision", 0, slice(1, None), None),
            ("text", pair.end, slice(0, pair.end), pair.end + 1),
        ):
            attention = getattr(pair, f"{tower}_attention")
            gradient = getattr(pair, f"{tower}_gradient")
            expected = {
                "attention": plain.raw_attention(attention, row),
                "rollout": plain.rollout(attention, start)[row],
                "legrad": plain.legrad(gradient[start:], queries),
            }
            for kind, values in expected.items() if name in RIVALS else ():
                actual = getattr(maps_by_kind[kind], tower)[i]
                assert_rows_equal(actual[: len(values[columns])], values[columns])


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
    expected = jax.jit(functools.partial(plain_relevancy, task))(clip.params, learnables, images, targets)
    maps = relevancy(task, clip.params, learnables, images, targets)
    assert_close(maps, expected)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(maps.scores, logits[jnp.arange(2), targets], rtol=1e-5)
    pairs = jnp.stack([(targets + 1) % 3, targets], axis=1)
    text = task.text_features(clip.params, learnables)
    many = relevancy(task, clip.params, learnables, images, pairs, chunk=3, text=text)
    assert_close(jax.tree.map(lambda x: x[:, 1], many), expected)


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
    expected = jax.jit(functools.partial(plain_relevancy, task))(clip.params, learnables, images, TARGETS)
    maps = relevancy(task, clip.params, learnables, images, TARGETS)
    assert_close(maps, expected, 2e-5)
    logits = jax.jit(task.logits)(clip.params, learnables, images)
    np.testing.assert_allclose(maps.scores, logits[np.arange(4), TARGETS], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("layers", [1, 6])
def test_layers_that_are_not_kept_are_computed_again_in_less_memory(layers):
    clip = model.random_clip(model.geometry("tiny", layers=layers))
    task = Task(clip, "ivlp", ["cat", "dog"])
    images = clip.preprocessing.normalize(model.random_images(clip.config, 4))
    arguments = clip.params, task.init(), images, jnp.array([0, 1, 1, 0])
    expected = jax.jit(functools.partial(plain_relevancy, task))(*arguments)
    sizes = []
    for recompute in (False, True):
        run = functools.partial(relevancy, task, recompute=recompute)
        program = jax.jit(run).lower(*arguments).compile()
        assert_close(program(*arguments), expected)
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert layers == 1 or sizes[1] < sizes[0] / 2


@pytest.mark.ci
def test_ways_to_compute_agree(clip, images):
    """A target of each image over several devices; several, some pairs at a time and with layers computed again."""
    task, learnables = tuned(clip, "bias")
    pairs = np.stack([TARGETS, (TARGETS + 1) % 3], axis=1)
    many = jax.device_get(relevancy(task, clip.params, learnables, images, pairs, recompute=True, chunk=3))
    assert many.vision.shape == (4, 2, 16)
    mesh = placement.make_mesh(data=4, devices=jax.devices()[:4])
    run = jax.jit(functools.partial(relevancy, task))
    params = placement.replicate(mesh, clip.params)
    placed = placement.replicate(mesh, learnables)
    shards = np.asarray(images)
    for k, targets in enumerate(pairs.T):
        sharded = run(params, placed, placement.place_rows(mesh, shards), placement.place_rows(mesh, targets))
        assert sharded.vision.sharding.spec[:1] == PartitionSpec("data")[:1]
        assert_close(jax.tree.map(lambda x, k=k: x[:, k], many), sharded)
