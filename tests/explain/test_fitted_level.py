"""The fitted constant: its divergence and gradient against float64, and that fitting finds what is constant."""

from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.explain.added import Added
from clipbias.explain.fitted_level import constant_divergence, fit_constants
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.study import Study
from clipbias.tuning import Task
from tests.explain.fitted_constants import everywhere, some_constant
from tests.explain.models import moved
from tests.explain.test_factorial import bind, reference_runs
from tests.explain.test_study import split
from tests.reference import levels, methods, numpy_clip
from tests.reference.cases import CLASS_NAMES

pytestmark = pytest.mark.ci

METHODS = ("ivlp", "lora")
STEPS = 200


@pytest.fixture(scope="module")
def study(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Study:
    models = [Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {})]
    for name in METHODS:
        bound = bind(clip, name)
        models.append(Model(name, name, name, bound.task, bound.learnables, seed=0))
    task = Task(clip, "bias_by_kind", CLASS_NAMES)
    models.append(Model("bias_by_kind", "By kind", "bias_by_kind", task, moved(task)))
    return Study(models, split(), StudyOptions(level_steps=STEPS), tmp_path_factory.mktemp("fitted"))


def pixels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def divergence_of(study: Study, name: str, constant: Added, images: np.ndarray) -> Any:
    """A function of the constant alone."""
    model = next(each for each in study.models if each.key == name)
    learnables = study.learnables[name]
    texts = model.task.text_features(study.params, learnables)
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), constant)
    run = jax.jit(lambda c, p, l: constant_divergence(study, model, (c,), p, l, texts, images))
    return lambda c=single: run(c, study.params, learnables)


@pytest.mark.parametrize("name", METHODS)
def test_divergence_and_gradient_against_float64(
    name: str, study: Study, clip: Clip, reference: methods.Reference
) -> None:
    bound = bind(clip, name)
    shown = pixels()
    runs = reference_runs(bound, reference, clip, name, "vision", np.float64(study.normalize(shown)))
    texts = np.asarray(bound.task.text_features(study.params, study.learnables[name]), np.float64)
    state = {"logit_scale": float(bound.task.method.logit_scale(clip.params))}  # some methods have their own
    teacher = numpy_clip.logits(state, runs[1].forward.features, texts)
    takes = {"attention": "P", "scale": "P"}

    def expected(constant: Added) -> float:
        level = everywhere(constant, len(shown), clip.config.vision.tokens)
        student = numpy_clip.logits(state, levels.features(*runs, takes, level), texts)
        log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (teacher, student))
        return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())

    constant = some_constant(clip, 1)
    divergence = divergence_of(study, name, constant, shown)
    assert divergence() == pytest.approx(expected(constant), rel=2e-4) and expected(constant) > 0.01
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), constant)
    gradient = jax.grad(divergence)(single)
    for seed in range(3):
        way = some_constant(clip, 10 + seed, 1.0)
        ends = [expected(jax.tree.map(lambda a, b, s=s: a + s * b, constant, way)) for s in (1e-5, -1e-5)]
        along = sum(
            float((np.asarray(a, np.float64) * b).sum())
            for a, b in zip(*map(jax.tree.leaves, (gradient, way)), strict=True)
        )
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-3, abs=1e-4)


def test_fitting_finds_the_constant_that_a_bias_is(study: Study) -> None:
    """From half of it; what the method does not add stays 0."""
    model = study.models[3]
    bias = np.asarray(study.learnables["bias_by_kind"]["vision_bias"])
    start = Added(np.zeros_like(bias[0]), np.zeros_like(bias), bias / 2)
    images = study.replicate(pixels(8))
    (fitted,) = fit_constants(study, model, (start,), images)
    before, after = (divergence_of(study, "bias_by_kind", each, pixels(8))() for each in (start, fitted))
    assert after < before / 5
    assert not fitted.slots.any() and not fitted.start.any() and fitted.blocks.any()


def test_fitting_does_better_than_where_it_starts(study: Study, clip: Clip) -> None:
    model = study.models[1]
    vision = clip.config.vision
    draw = np.random.default_rng(2)
    slots = 0.1 * draw.normal(size=(vision.layers, 2, vision.width)).astype(np.float32)
    start = Added(np.zeros((2, vision.width), np.float32), slots, None)
    images = study.replicate(pixels(8))
    (fitted,) = fit_constants(study, model, (start,), images)
    before, after = (divergence_of(study, "ivlp", each, pixels(8))() for each in (start, fitted))
    assert after < before and fitted.blocks is None
    (again,) = fit_constants(study, model, (start,), images)
    np.testing.assert_array_equal(fitted.slots, again.slots)
