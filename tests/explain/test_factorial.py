"""Every mixture of the two runs, in both towers and for every kind of method, against the plain NumPy reference."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, convert, encode_image, encode_text
from clipbias.clip.weight_changes import fold_changes
from clipbias.errors import ClipbiasError
from clipbias.explain.decomposition import observe_parts
from clipbias.explain.factorial import corners, effects_in_play, mix_images, mix_texts, slot_means
from clipbias.explain.statistics import Moments
from clipbias.explain.tokens import text_roles, vision_roles
from clipbias.tuning import Learnables, Task
from tests import helpers, own_methods
from tests.explain.models import moved
from tests.reference import factorial, methods, weights
from tests.reference.cases import CLASS_NAMES
from tests.reference.factorial import Run
from tests.reference.tokenizer import SimpleTokenizer

FOLDER = Path(__file__).parents[1] / "data_files" / "tiny_quick_gelu"
TOLERANCE = 2e-5  # of an array's largest number, in float32


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with its options, those that the reference knows it by, and the towers that are worth comparing."""

    method: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    towers: Sequence[str] = ("vision", "text")


CASES = {
    "ivlp": Case("ivlp"),
    # Prompts that live on beyond their depth, and fewer of them than the text has words.
    "ivlp_shallow": Case("ivlp", {"text_tokens": 2, "vision_tokens": 3, "text_depth": 2, "vision_depth": 1}),
    "vpt_two_layers": Case("vpt", {"tokens": 2, "depth": 2}, towers=["vision"]),
    "maple": Case("maple", {"tokens": 2, "depth": 2}),
    "coop_middle": Case("coop", {"position": "middle"}, {"position": "middle"}, ["text"]),
    "coop_long": Case("coop", {"tokens": 7}, {"worded": False}, ["text"]),
    "coop_class_specific_front": Case(
        "coop",
        {"class_specific": True, "words": "", "position": "front"},
        {"worded": False, "position": "front"},
        ["text"],
    ),
    "bias": Case("bias"),
    "lora": Case("clip_lora", {"parts": ("q", "v", "o")}),
    "layer_norm": Case("layer_norm", {"outer": True}),
    # Pixels, biases, prompts, pairs of low rank and the projection at once.
    "everything": Case(own_methods.Everything(), towers=["vision"]),
}
PARTS = [(name, tower) for name, case in CASES.items() for tower in case.towers]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clipbias.load(FOLDER)


@pytest.fixture(scope="module")
def plain() -> methods.Reference:
    state = weights.double(safetensors.numpy.load_file(FOLDER / "model.safetensors"))
    return methods.Reference(state, weights.read_config(FOLDER), SimpleTokenizer(FOLDER, 24))


@pytest.fixture(scope="module")
def images(plain) -> np.ndarray:
    return helpers.random_images(plain.config, 3, seed=4)


@dataclasses.dataclass
class Bound:
    """A task, learnables before and after tuning, and what both runs have."""

    task: Task
    tuned: Adaptation
    reference: Adaptation
    learnables: Learnables
    effects: tuple[str, ...]


def bind(clip: Clip, name: str) -> Bound:
    case = CASES[name]
    task = Task(clip, case.method, CLASS_NAMES, **case.options)
    before, after = task.init(), moved(task)
    tuned = task.method.adapt(after)
    reference = Adaptation(text_context=task.method.adapt(before).text_context)
    slots = tuned.text_context is not None or tuned.vision_prompts is not None
    return Bound(task, tuned, reference, after, effects_in_play(slots))


def run_product(
    bound: Bound, clip: Clip, tower: str, images: np.ndarray, streams: Sequence[str], means: Any = None
) -> Any:
    if tower == "vision":
        mix = lambda params, *runs: mix_images(params, clip.config, jnp.asarray(images), *runs, streams, means)
    else:
        tokens = jax.tree.map(jnp.asarray, bound.task.tokens)
        mix = lambda params, *runs: mix_texts(params, clip.config, tokens, *runs, streams, means)
    return jax.jit(mix)(clip.params, bound.tuned, bound.reference)


def product_moments(bound: Bound, clip: Clip, tower: str, images: np.ndarray) -> Moments:
    """What the tuned run's slots add, over samples."""
    if tower == "vision":
        prompts = bound.tuned.vision_prompts
        roles = vision_roles(clip.config.vision, 0 if prompts is None else prompts.shape[1])
        observe = observe_parts(roles, jnp.zeros(len(images), jnp.int32))
        run = functools.partial(encode_image, config=clip.config, images=jnp.asarray(images), observe=observe)
    else:
        tokens = jax.tree.map(jnp.asarray, bound.task.tokens)
        observe = observe_parts(text_roles(bound.task), tokens.eos)
        run = functools.partial(encode_text, config=clip.config, tokens=tokens, observe=observe)
    return jax.jit(lambda params, tuned: run(params, adaptation=tuned)[1]["part"])(clip.params, bound.tuned)


def with_changes(plain: methods.Reference, clip: Clip, tuned: Adaptation) -> methods.Reference:
    """The reference's weights with the method's changes in them."""
    changes = {"vision": tuned.vision_weights, "text": tuned.text_weights}
    params = {
        name: fold_changes(tree, changes[name]) if changes.get(name) else tree for name, tree in clip.params.items()
    }
    state = weights.double(convert.to_tensors(clip.config, jax.tree.map(np.asarray, params)))
    return dataclasses.replace(plain, state=state)


def reference_runs(bound: Bound, plain: methods.Reference, clip: Clip, name: str, tower: str, images: Any):
    """The reference and the tuned run in float64."""
    case, changed = CASES[name], with_changes(plain, clip, bound.tuned)
    arrays = {
        field.name: None if getattr(bound.tuned, field.name) is None else weights.double({"": value})[""]
        for field in dataclasses.fields(bound.tuned)
        if not isinstance(value := getattr(bound.tuned, field.name), dict)
    }
    if tower == "vision":
        inputs = dataclasses.replace(
            methods.prepare(plain, "zero_shot", CLASS_NAMES, {}),
            vision_prompts=arrays["vision_prompts"],
            vision_bias=arrays["vision_bias"],
        )
        shown = images if arrays["pixels"] is None else images + arrays["pixels"]
        return factorial.vision_run(plain, images), factorial.vision_run(changed, shown, inputs)
    method = case.method if case.method in ("coop", "ivlp") else "ivlp"
    learnables = {key: np.asarray(value) for key, value in bound.learnables.items() if key in ("text_context", "text_prompts")}
    before = factorial.reference_inputs(plain, method, CLASS_NAMES, bound.reference.text_context, **case.text)
    after = methods.prepare(plain, method, CLASS_NAMES, learnables, **case.text)
    after = dataclasses.replace(after, text_bias=arrays["text_bias"])
    return factorial.text_run(plain, before), factorial.text_run(changed, after)


def assert_close(found: Any, expected: np.ndarray, what: str = "") -> None:
    error = np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"{what} differs by {error:.1e} of its largest number"


@pytest.mark.parametrize(("name", "tower"), PARTS)
def test_every_mixture_equals_the_reference(name, tower, clip, plain, images):
    bound = bind(clip, name)
    runs = reference_runs(bound, plain, clip, name, tower, images)
    streams = factorial.streams(bound.effects)
    constants = factorial.means(runs[1:])
    moments = product_moments(bound, clip, tower, images)
    means = slot_means(moments)
    length = means["token"].shape[1]
    assert_close_or_zero(means["token"], constants["token"][:, :length])
    found = run_product(bound, clip, tower, images, streams, means)
    assert_close(found.reference, runs[0].forward.features, "the reference")
    assert_close(found.tuned, runs[1].forward.features, "the tuned model")
    for stream, features in zip(streams, found.streams, strict=True):
        expected = factorial.features(*runs, stream, bound.effects, constants)
        assert_close(features, expected, stream)


def assert_close_or_zero(found: np.ndarray, expected: np.ndarray) -> None:
    if expected.any():
        assert_close(found, expected, "a mean")
    else:
        assert not found.any()
