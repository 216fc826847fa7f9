"""Every mixture of the two runs, in both towers and for every kind of method, against the plain NumPy reference."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip, checkpoint, encode_image
from clipbias.clip.layers import fold_changes
from clipbias.data.images import pictures
from clipbias.explain import endpoint
from clipbias.explain.factorial import corners, effects_in_play, mix_images, mix_texts
from clipbias.explain.factorial_section import compute_factorial
from clipbias.explain.mixtures import random_prompts
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.study import Study
from clipbias.tuning import Learnables, Task
from tests import helpers, own_methods
from tests.explain.models import moved
from tests.explain.test_study import split
from tests.reference import factorial, methods, numpy_clip, weights
from tests.reference.cases import CLASS_NAMES

TOLERANCE = 2e-5  # of an array's largest number, in float32


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with its options, those that the reference knows it by, and the towers that are worth comparing."""

    method: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    towers: Sequence[str] = ("vision", "text")
    bias_rows: int = 0  # of a layer's bias, in place of the method's own one: 2 by kind, one for each token


CASES = {
    "ivlp": Case("ivlp"),
    # Prompts that live on beyond their depth, and fewer of them than the text has words.
    "maple": Case("maple", {"tokens": 2, "depth": 2}, towers=["text"]),
    "coop_middle": Case("coop", {"position": "middle"}, {"position": "middle"}, ["text"]),
    "coop_long": Case("coop", {"tokens": 7}, {"worded": False}, ["text"]),
    "coop_class_specific_front": Case(
        "coop",
        {"class_specific": True, "words": "", "position": "front"},
        {"worded": False, "position": "front"},
        ["text"],
    ),
    "bias_by_kind": Case("bias", bias_rows=2),
    "lora": Case("clip_lora", {"parts": ("q", "v", "o")}, towers=["vision"]),
    "layer_norm": Case("layer_norm", {"outer": True}, towers=["vision"]),
    # Pixels, a bias for each token, prompts, pairs of low rank and the projection at once.
    "everything": Case(own_methods.Everything(), towers=["vision"], bias_rows=17),
}
PARTS = [(name, tower) for name, case in CASES.items() for tower in case.towers]
# What others go through as well: text prompts, a place, a random start, pairs of low rank.
LONG = (("ivlp", "text"), ("coop_middle", "text"), ("coop_long", "text"), ("lora", "vision"))


@pytest.fixture(scope="module")
def images(reference) -> np.ndarray:
    return helpers.random_images(reference.config, 3, seed=4)


@dataclasses.dataclass
class Bound:
    """A task, learnables before and after tuning, and what both runs have."""

    task: Task
    tuned: Adaptation
    reference: Adaptation
    learnables: Learnables
    effects: tuple[str, ...]


def bind(clip: Clip, name: str, seed: int = 0) -> Bound:
    case = CASES[name]
    task = Task(clip, case.method, CLASS_NAMES, **case.options)
    before = task.init(seed)
    after = moved(task)
    tuned = task.method.adapt(after)
    for tower in case.towers if case.bias_rows else ():
        bias = getattr(tuned, f"{tower}_bias")
        factors = np.linspace(-1, 2, case.bias_rows, dtype=np.float32)[:, None]
        tuned = dataclasses.replace(tuned, **{f"{tower}_bias": bias[:, None] * factors})
    reference = Adaptation(text_context=task.method.adapt(before).text_context)
    slots = tuned.text_context is not None or tuned.vision_prompts is not None
    return Bound(task, tuned, reference, after, effects_in_play(slots))


def run_product(bound: Bound, clip: Clip, tower: str, images: np.ndarray, streams: Sequence[str]) -> Any:
    tokens = bound.task.tokens

    def mix(params: Any, *runs: Adaptation) -> Any:
        if tower == "vision":
            return mix_images(params, clip.config, images, *runs, streams)
        return mix_texts(params, clip.config, tokens, *runs, streams)

    return jax.jit(mix)(clip.params, bound.tuned, bound.reference)


def with_changes(reference: methods.Reference, clip: Clip, tuned: Adaptation) -> methods.Reference:
    """The reference's weights with the method's changes in them."""
    changes = {"vision": tuned.vision_weights, "text": tuned.text_weights}
    params = {
        name: fold_changes(tree, changes[name]) if changes.get(name) else tree for name, tree in clip.params.items()
    }
    state = weights.double(checkpoint.to_tensors(clip.config, jax.tree.map(np.asarray, params)))
    return dataclasses.replace(reference, state=state)


def reference_runs(bound: Bound, reference: methods.Reference, clip: Clip, name: str, tower: str, images: Any):
    """The reference and the tuned run in float64."""
    case = CASES[name]
    changed = with_changes(reference, clip, bound.tuned)
    arrays = {
        field.name: None if getattr(bound.tuned, field.name) is None else weights.double({"": value})[""]
        for field in dataclasses.fields(bound.tuned)
        if not isinstance(value := getattr(bound.tuned, field.name), dict)
    }
    if tower == "vision":
        inputs = dataclasses.replace(
            methods.prepare(reference, "zero_shot", CLASS_NAMES, {}),
            vision_prompts=arrays["vision_prompts"],
            vision_bias=arrays["vision_bias"],
        )
        shown = images if arrays["pixels"] is None else images + arrays["pixels"]
        return factorial.vision_run(reference, images), factorial.vision_run(changed, shown, inputs)
    method = case.method if case.method in ("coop", "ivlp") else "ivlp"
    learnables = {
        key: np.asarray(value) for key, value in bound.learnables.items() if key in ("text_context", "text_prompts")
    }
    before = factorial.reference_inputs(reference, method, CLASS_NAMES, bound.reference.text_context, **case.text)
    after = methods.prepare(reference, method, CLASS_NAMES, learnables, **case.text)
    after = dataclasses.replace(after, text_bias=arrays["text_bias"])
    return factorial.text_run(reference, before), factorial.text_run(changed, after)


def assert_close(actual: Any, expected: np.ndarray, what: str = "") -> None:
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"{what} differs by {error:.1e} of its largest number"


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "tower"), [pytest.param(*part, marks=[pytest.mark.long] * (part in LONG)) for part in PARTS]
)
def test_every_mixture_equals_the_reference(name, tower, clip, reference, images):
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, tower, images)
    streams = factorial.streams(bound.effects)
    effects = bound.effects
    assert corners(effects) == tuple(streams[: 2 ** len(effects)])
    mixed = run_product(bound, clip, tower, images, streams)
    assert_close(mixed.reference, runs[0].forward.features, "the reference")
    assert_close(mixed.tuned, runs[1].forward.features, "the tuned model")
    for stream, features in zip(streams, mixed.streams, strict=True):
        assert_close(features, factorial.features(*runs, stream, effects), stream)
    # Outcomes are shared out without a rest.
    first, last = (mixed.streams[place] for place in (0, 2 ** len(effects) - 1))
    assert_close(first, np.asarray(mixed.reference, np.float64), "the all-R corner")
    assert_close(last, np.asarray(mixed.tuned, np.float64), "the all-P corner")


def test_networks_beside_blocks_are_values(clip, images):
    """Of MMA the first corner is CLIP and the last the tuned model; attention alone and values alone are neither."""
    task = Task(clip, "mma", CLASS_NAMES, blocks=2, width=4, factor=1.0)
    tuned = task.method.adapt(moved(task))
    names = corners(effects_in_play(False))

    @jax.jit
    def run(params, tuned, images):
        ends = [encode_image(params, clip.config, images, each)[0] for each in (Adaptation(), tuned)]
        return mix_images(params, clip.config, images, tuned, Adaptation(), names), ends

    mixed, ends = jax.device_get(run(clip.params, tuned, images))
    for stream, expected in zip((mixed.streams[0], mixed.streams[-1]), ends, strict=True):
        np.testing.assert_allclose(stream, expected, atol=TOLERANCE * np.abs(expected).max())
    assert all(np.abs(np.asarray(mixed.streams[k]) - end).max() > 1e-3 for k in (1, 2) for end in ends)


@pytest.mark.ci
def test_texts_start_from_the_context_of_the_seed(clip, reference, tmp_path, monkeypatch):
    """From files to the likelihood of every image, where that context is drawn at random."""
    name = "coop_long"
    seed = 3
    bound = bind(clip, name, seed)
    images = split()
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {}),
        Model("tuned", "Tuned", "coop", bound.task, bound.learnables, seed=seed),
    ]
    study = Study(models, images, StudyOptions(batch_size=7, control_images=0), tmp_path)
    monkeypatch.setattr(endpoint, "FEWEST_IMAGES", 2)
    monkeypatch.setattr(endpoint, "RESAMPLES", 50)
    tests = study.run_section(compute_factorial(study))
    test = tests.models["tuned"]
    (cell,) = tests.cells
    effects = test.summary.towers["both"]
    assert cell.models == ("tuned",) and cell.gain.value == pytest.approx(effects.calibrated.gain.value)
    for outcome in ("calibrated", "accuracy"):
        above = effects[outcome].corners["RPP"].value - effects[outcome].gain.value / 2
        assert getattr(cell.tests[0], outcome).value == pytest.approx(above, abs=1e-9)
    levels = pictures(images, np.arange(7), clip.preprocessing.resizing)
    pixels = (levels / 255 - clip.preprocessing.mean) / clip.preprocessing.std
    features = numpy_clip.encode_image(reference.state, reference.config, pixels).features
    runs = reference_runs(bound, reference, clip, name, "text", None)
    streams = factorial.streams(bound.effects)
    assert test.streams == tuple(streams) and test.towers == ("both",)
    for k, stream in enumerate(streams):
        logits = numpy_clip.logits(reference.state, features, factorial.features(*runs, stream, bound.effects))
        for outcome, expected in (
            ("log_likelihood", factorial.log_likelihood(logits, images.labels)),
            ("correct", logits.argmax(-1) == images.labels),
        ):
            column = getattr(test.outcomes, outcome)[:, 0, k]
            np.testing.assert_allclose(column, expected, rtol=1e-4, atol=2e-4, err_msg=stream)


def test_prompts_at_random_have_the_norms_of_the_trained(clip):
    tuned = bind(clip, "ivlp").tuned
    drawn = jax.jit(random_prompts, static_argnums=1)(tuned, 0)
    for name in ("text_context", "text_prompts", "vision_prompts"):
        norms = [np.linalg.norm(getattr(adaptation, name), axis=-1) for adaptation in (tuned, drawn)]
        np.testing.assert_allclose(*norms, rtol=1e-5)
        assert np.abs(getattr(tuned, name) - getattr(drawn, name)).max() > 0.1
