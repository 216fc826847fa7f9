"""Constants, added and subtracted, against the float64 reference; forms and the random control."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip
from clipbias.constants import TOWERS
from clipbias.data.transforms import Resizing
from clipbias.explain.bias_adapter import raw_batches
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.equivalent_bias import changed_towers, measure_equivalent_bias, random_constants
from clipbias.explain.intervention_classifier import InterventionClassifier
from clipbias.explain.replacement_names import REPLACEMENT_FORMS
from clipbias.explain.results import EquivalentBias
from clipbias.explain.scope import passes
from clipbias.tuning import Task, make_method
from tests import own_methods
from tests.explain.models import moved, tuned
from tests.helpers import short
from tests.reference import equivalent_bias as plain_bias
from tests.reference import factorial, intervention, methods, numpy_clip
from tests.reference.cases import CASES, CLASS_NAMES
from tests.tuning import weights_common


def measured(task: Task, learnables: Any, raw: np.ndarray, *, batch_size: int = 5) -> dict[str, EquivalentBias]:
    batches = raw_batches(raw, Resizing(16), batch_size)
    return measure_equivalent_bias(task, task.clip.params, learnables, task.init(), batches)[0]


def constants(biases: dict[str, EquivalentBias], form: str) -> dict[str, np.ndarray]:
    return {tower: bias.constants(form) for tower, bias in biases.items()}


class Plain:
    """The same method in float64."""

    def __init__(self, reference: methods.Reference, task: Task, learnables: Any, images: np.ndarray) -> None:
        case = CASES["ivlp_two_and_one_layers"]
        start = {**learnables, "text_context": np.asarray(task.init()["text_context"])}
        inputs, before = (
            methods.prepare(reference, case.method, CLASS_NAMES, values, **case.options)
            for values in (learnables, start)
        )
        before = dataclasses.replace(before, text_prompts={}, vision_prompts=None)
        self.tuned = {
            "vision": factorial.vision_run(reference, images, inputs),
            "text": factorial.text_run(reference, inputs),
        }
        self.frozen = {
            "vision": factorial.vision_run(reference, images),
            "text": factorial.text_run(reference, before),
        }
        self.prompts = {"vision": dict(enumerate(inputs.vision_prompts))}
        self.prompts["vision"].pop(0)
        self.prompts["text"] = inputs.text_prompts
        self.changes = {
            tower: intervention.changes(self.tuned[tower], self.frozen[tower], self.frozen[tower])
            for tower in ("vision", "text")
        }
        self.state = reference.state
        self.own = inputs
        self.before = before

    def add(self, tower: str, replacement: str) -> intervention.Add:
        """What a replacement adds, from the lists of changes."""
        run = self.frozen[tower]

        def kind(b: int, i: int) -> bool:
            return replacement == "kind" and i == run.forward.rows[b]

        groups: list[dict[bool, np.ndarray]] = []
        for layer in self.changes[tower]:
            listed: dict[bool, list[np.ndarray]] = {}
            for b, i, change in layer:
                listed.setdefault(kind(b, i), []).append(change)
            groups.append({key: np.mean(values, axis=0) for key, values in listed.items()})

        def add(l: int, b: int, i: int, token: np.ndarray) -> np.ndarray:
            return groups[l][kind(b, i)]

        return add

    def logits(self, form: str) -> np.ndarray:
        kind, _, replacement = form.partition(":")
        runs = self.tuned if kind == "lost" else self.frozen
        features = {}
        for tower, run in runs.items():
            if kind == "reference":
                features[tower] = run.forward.features
                continue
            add = self.add(tower, replacement)
            if kind == "kept":  # the words in a text's slots are tokens like all others
                every = np.broadcast_to(np.arange(run.forward.last.shape[1]), run.forward.last.shape[:2])
                whole = dataclasses.replace(run, inputs=every)
                features[tower] = intervention.features(whole, {}, add)
            else:
                lost = lambda *args, add=add: -add(*args)  # noqa: E731
                features[tower] = intervention.features(run, self.prompts[tower], lost)
        return numpy_clip.logits(self.state, features["vision"], features["text"])


@pytest.mark.ci
def test_every_form_is_measured_added_and_subtracted_as_the_reference_says(
    clip: Clip, reference: methods.Reference
) -> None:
    """By two images at a time, of which the last is alone."""
    raw, images = weights_common.pictures(16, 5)
    case = CASES["ivlp_two_and_one_layers"]
    task = Task(clip, "ivlp", CLASS_NAMES, text_tokens=2, vision_tokens=2, text_depth=2, vision_depth=1)
    values = methods.random_learnables(reference.config, case.method, len(CLASS_NAMES), **case.sizes)
    biases = measured(task, values, raw, batch_size=2)
    plain = Plain(reference, task, values, images)
    forms = {
        "vision": plain_bias.of_images(reference, reference.state, plain.own, images),
        "text": plain_bias.of_texts(reference, reference.state, plain.own, plain.before),
    }
    for tower, form in itertools.product(forms, REPLACEMENT_FORMS):
        weights_common.close(getattr(biases[tower], form), forms[tower][form], 2e-5, f"{tower} {form}")
    classify = InterventionClassifier(
        task,
        clip.params,
        values,
        reference_adaptation(task, task.init()),
        {form: constants(biases, form) for form in REPLACEMENT_FORMS},
    )
    assert classify.forms == ("reference", "kept:vector", "kept:kind", "lost:vector", "lost:kind")
    logits = np.asarray(classify(np.float32(images)))
    seen: list[np.ndarray] = []
    for form, actual in zip(classify.forms, logits, strict=True):
        expected = plain.logits(form)
        np.testing.assert_allclose(actual, expected, atol=3e-4 * np.abs(expected).max(), err_msg=form)
        assert all(np.abs(expected - other).max() > 1e-2 for other in seen), form
        seen.append(expected)


@pytest.mark.ci
@pytest.mark.parametrize("method", short(["bias", "bias_by_kind"], "bias_by_kind"))
def test_a_bias_is_its_own_equivalent_bias_and_is_kept_and_lost_whole(method: str, clip: Clip) -> None:
    task, learnables = tuned(clip, method)
    raw, images = weights_common.pictures(16, 5)
    biases = measured(task, learnables, raw)
    for tower, measure in biases.items():
        tuned_bias = learnables[f"{tower}_bias"]
        by_kind = tuned_bias if tuned_bias.ndim == 3 else np.repeat(tuned_bias[:, None], 2, axis=1)
        np.testing.assert_allclose(measure.kind, by_kind, atol=2e-6)
        others = 16 if tower == "vision" else np.mean(task.tokens.eos)  # tokens beside the one that is read out
        np.testing.assert_allclose(measure.vector, (by_kind[:, 0] + others * by_kind[:, 1]) / (1 + others), atol=2e-6)
    replacement = {"bias": "vector", "bias_by_kind": "kind"}[method]
    tuned_bias = reference_adaptation(task, learnables)
    classify = InterventionClassifier(
        task, clip.params, learnables, tuned_bias, {"own": constants(biases, replacement)}
    )
    images = np.float32(images)
    frozen, added, lost = np.asarray(classify(images))
    np.testing.assert_allclose(added, jax.jit(task.logits)(clip.params, learnables, images), atol=2e-4)
    np.testing.assert_allclose(lost, frozen, atol=2e-4)
    assert np.abs(added - frozen).max() > 0.1


def nothing(task: Task, learnables: Any) -> dict[str, np.ndarray]:
    """Zeros in place of constants."""
    geometry = {tower: getattr(task.clip.config, tower) for tower in changed_towers(task, learnables)}
    return {tower: np.zeros((each.layers, 2, each.width), np.float32) for tower, each in geometry.items()}


HEADS = [
    ("two_stage", {}),
    ("mmrl", {}),
    ("plot", {"tokens": 4, "sets": 2}),
    ("proda", {"tokens": 4}),
    ("plot_plus_plus", {}),
]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cocoop", {}),
        pytest.param(own_methods.Head(), {}, id="own_head", marks=pytest.mark.long),
        *(pytest.param(*each, marks=pytest.mark.long) for each in HEADS),
    ],
)
def test_nothing_is_lost_without_a_constant_and_a_head_is_kept(
    method: Any, options: dict[str, Any], clip: Clip
) -> None:
    """With zeros subtracted every method classifies as it does, inserted tokens, heads and all."""
    task = Task(clip, method, CLASS_NAMES, **options)
    learnables = moved(task)
    params = clip.params
    images = np.float32(weights_common.pictures(16, 5)[1])
    reference = reference_adaptation(task, task.init())
    classify = InterventionClassifier(task, params, learnables, reference, {"kind": nothing(task, learnables)})
    logits = dict(zip(classify.forms, np.asarray(classify(images)), strict=True))
    frozen = logits["reference"]
    np.testing.assert_allclose(logits["kept:kind"], frozen, atol=1e-4)
    if task.method.conditional:
        assert classify.forms == ("reference", "kept:kind")
        return
    tuned = np.asarray(jax.jit(task.logits)(params, learnables, images))
    np.testing.assert_allclose(logits["lost:kind"], tuned, atol=2e-4 * np.abs(tuned).max())
    if "zero_shot" not in logits:
        assert method == "mmrl"
        return
    head = task.classifier
    plain = dataclasses.replace(task.classifier, method=make_method("zero_shot"))

    @jax.jit
    def run(params: Any, learnables: Any, reference: Adaptation, images: Any) -> tuple[jax.Array, jax.Array]:
        """The method's own head and CLIP's, of features of towers that nothing changes but the first words."""
        texts = head.encode_text(params, reference, task.text)
        features, whole = (each.encode_images(params, Adaptation(), images) for each in (head, plain))
        if (sets := passes(task)) > 1:
            features = jnp.stack([features] * sets, axis=1)
        return head.head(params, learnables, features, texts), plain.head(params, {}, whole, texts)

    added, apart = map(np.asarray, run(params, learnables, reference, images))
    np.testing.assert_allclose(frozen, added, atol=1e-4)
    np.testing.assert_allclose(logits["zero_shot"], apart, atol=1e-4)
    assert np.abs(added - apart).max() > 1e-2


def test_a_random_constant_keeps_norms_and_loses_directions() -> None:
    draw = np.random.default_rng(0)
    kinds = draw.normal(size=(2, 4, 2, 3)) * np.arange(1, 5)[:, None, None]
    biases = {tower: EquivalentBias(kind.mean(1), kind) for tower, kind in zip(TOWERS, kinds, strict=True)}
    drawn = random_constants(biases, seed=10)
    for tower, bias in biases.items():
        norms = np.linalg.norm(bias.kind, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(drawn[tower], axis=-1), norms, rtol=1e-5)
        cosines = (drawn[tower] * bias.kind).sum(-1) / norms**2
        assert np.abs(cosines).max() < 0.999 and np.abs(cosines).mean() < 0.9
    assert np.abs(drawn["vision"] - drawn["text"]).max() > 0.1
    np.testing.assert_array_equal(random_constants(biases, seed=10)["text"], drawn["text"])
