"""Relevancy and its rivals against the full matrices of the plain NumPy reference, one pair at a time."""

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.explain.relevancy import REDUCTIONS, MapOptions, explanations
from clipbias.tuning import Task
from tests import helpers
from tests.reference import methods
from tests.reference import relevancy as plain
from tests.reference.cases import CASES, CLASS_NAMES, Case

TOLERANCE = 2e-5  # of a row's largest number, in float32
TARGETS = np.array([2, 0, 4])

# Those whose explanation differs by more than the depth of the prompts.
EXPLAINED = {
    "zero_shot": {},
    "coop_middle": {"tokens": 4, "position": "middle"},
    "coop_class_specific": {"tokens": 4, "class_specific": True, "words": ""},
    "vpt_two_layers": {"tokens": 3, "depth": 2},
    "ivlp": {},
    "maple_two_layers": {"tokens": 2, "depth": 2},
    "taskres": {},
    "bias": {},
    "bias_by_kind": {},
}
SHORT = ("coop_class_specific",)  # beside the rivals; `test_sections` has zero-shot and IVLP in two layers


def bind(clip: Clip, reference: methods.Reference, name: str) -> tuple[Task, Case, dict[str, np.ndarray]]:
    """The task of a case, and learnables that are not zero."""
    case = CASES.get(name) or Case(name)
    template = case.options.get("template", methods.WORDED)
    task = Task(clip, case.method, CLASS_NAMES, template=template, **EXPLAINED[name])
    return task, case, methods.random_learnables(reference.config, case.method, len(CLASS_NAMES), **case.sizes)


def assert_rows_equal(actual: jax.Array, expected: np.ndarray) -> None:
    assert np.abs(np.asarray(actual) - expected).max() < TOLERANCE * np.abs(expected).max()


# Those whose rivals of relevancy are compared too, from what first layer.
RIVALS = {"ivlp": 1, "bias_by_kind": 0}


@pytest.mark.parametrize("name", helpers.short(EXPLAINED, *SHORT, *RIVALS))
def test_maps_equal_the_full_matrices(name, clip, reference):
    task, case, learnables = bind(clip, reference, name)
    images = helpers.random_images(reference.config, len(TARGETS), seed=1)
    maps = tuple(REDUCTIONS) if name in RIVALS else ("relevancy",)
    start = RIVALS.get(name, 0)
    arguments = (task, clip.params, learnables, images, TARGETS)
    maps_by_kind = jax.device_get(explanations(*arguments, MapOptions(maps, start)))
    inputs = methods.prepare(reference, case.method, CLASS_NAMES, learnables, **case.options)
    for i, target in enumerate(TARGETS):
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
