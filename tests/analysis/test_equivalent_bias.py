"""Equivalent biases: against the float64 reference, put in the method's place, as adapters and in a study."""

from typing import Any

import numpy as np
import pytest

import clipbias
from clipbias import studies
from clipbias.analysis.bias import measure_equivalent_bias, measure_equivalent_biases
from clipbias.analysis.model import Model
from clipbias.clip.encode import image_batches
from clipbias.constants import TOWERS
from clipbias.data import Dataset
from clipbias.export.card import model_card
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import moved
from tests.analysis.test_study import make, split
from tests.reference import equivalent_bias as plain
from tests.reference import inner_parts, methods, weight_tuning
from tests.reference.cases import CASES, CLASS_NAMES
from tests.tuning import test_weights, weights_common

LABELS = np.array([4, 0, 2, 2, 1])
FORMS = ("vector", "kind")
TOLERANCE = 2e-5  # of the largest number, in float32

# With a map from one tower to the other, in the middle of the text, from random vectors.
PROMPTS: dict[str, dict[str, Any]] = {
    "maple_two_layers": {"tokens": 2, "depth": 2},
    "coop_placeholders_middle": {"tokens": 7, "position": "middle"},
    "coop_class_specific_front": {"tokens": 4, "class_specific": True, "words": "", "position": "front"},
}


def pixels():
    """Raw and normalised, `[B, R, R, 3]`."""
    return weights_common.pictures(16, len(LABELS))


def measured(task, learnables, initial=None, batch_size=5):
    initial = task.init() if initial is None else initial
    batches = image_batches(task.clip.preprocessing, pixels()[0], batch_size)
    return measure_equivalent_bias(task, task.clip.params, learnables, initial, batches)[0]


def assert_forms(actual, expected, tolerance=TOLERANCE):
    assert actual.keys() == expected.keys()
    for tower, forms in expected.items():
        for form, values in forms.items():
            weights_common.close(getattr(actual[tower], form), values, tolerance, f"{tower} {form}")


@pytest.mark.ci
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_equivalent_bias_of_the_reference(name, clip, reference, monkeypatch):
    case = CASES[name]
    images = pixels()[1]
    task = Task(clip, case.method, CLASS_NAMES, **PROMPTS[name])
    learnables, start = (
        methods.random_learnables(reference.config, case.method, len(CLASS_NAMES), seed=seed, **case.sizes)
        for seed in (0, 1)
    )
    if case.options.get("worded", True):  # the context starts from the words' own embeddings
        start = {**start, "text_context": np.asarray(task.init()["text_context"])}
    inputs, initial = (
        methods.prepare(reference, case.method, CLASS_NAMES, values, **case.options) for values in (learnables, start)
    )
    expected = {"text": plain.of_texts(reference, reference.state, inputs, initial)}
    if inputs.vision_prompts is not None:
        expected = {"vision": plain.of_images(reference, reference.state, inputs, images)} | expected
    if "class_specific" in name:  # a part of the texts at a time
        monkeypatch.setattr("clipbias.analysis.bias._TEXTS_AT_ONCE", 2)
    assert_forms(measured(task, learnables, start), expected)


@pytest.mark.ci
def test_tuned_weights_have_the_equivalent_bias_of_the_reference(clip, reference):
    plain_inputs = methods.prepare(reference, "zero_shot", CLASS_NAMES, {})
    lora = Task(clip, "clip_lora", CLASS_NAMES)
    pairs = weights_common.start(lora)
    norms = Task(clip, "layer_norm", CLASS_NAMES, outer=True)
    changes = moved(norms)
    changed = weights_common.named(changes)
    for task, learnables, state in (
        (lora, pairs, weight_tuning.fold_lora(reference.state, test_weights.named_pairs(lora, pairs))),
        (norms, changes, reference.state | {key: reference.state[key] + value for key, value in changed.items()}),
    ):
        expected = {
            "vision": plain.of_images(reference, state, plain_inputs, pixels()[1]),
            "text": plain.of_texts(reference, state, plain_inputs, plain_inputs),
        }
        assert_forms(measured(task, learnables), expected)


@pytest.mark.long
def test_networks_beside_blocks_have_the_equivalent_bias_of_the_reference(clip, reference):
    task = Task(clip, "mma", CLASS_NAMES, blocks=2, width=6, factor=0.05)
    learnables = weights_common.drawn(task.shapes, 0.4)
    expected = {}
    for tower, inputs in inner_parts.towers_of(reference, CLASS_NAMES, methods.WORDED, pixels()[1]).items():
        beside = inner_parts.adapters(inner_parts.flatten(learnables), tower, 3, 0.05)
        expected[tower] = plain.of_inserted(
            reference, tower, inner_parts.forward(reference, tower, inputs, beside=beside)
        )
    biases = measured(task, learnables)
    # What is added is small beside the tokens that it is the difference of.
    assert_forms(biases, expected, 2e-4)
    assert not np.abs(biases["vision"].vector[0]).max() > 1e-6


def test_several_contexts_of_a_class_are_averaged(clip, reference):
    names = CLASS_NAMES[:2]
    task = Task(clip, "plot", names, tokens=4, sets=3)
    learnables = moved(task)
    initial = task.init()
    expected = []
    for context, start in zip(learnables["text_context"], initial["text_context"], strict=True):
        inputs, before = (
            methods.prepare(reference, "coop", names, {"text_context": np.asarray(values)}, worded=False)
            for values in (context, start)
        )
        expected.append(plain.of_texts(reference, reference.state, inputs, before))
    # The same texts, so that all count alike.
    averages = {form: np.mean([forms[form] for forms in expected], axis=0) for form in FORMS}
    assert_forms(measured(task, learnables, initial), {"text": averages})


def model_of(clip, method, notes=None, **options):
    task = Task(clip, method, CLASS_NAMES, **options)
    known = {"dataset": "demo/digits", "seed": 3, "accuracy": 50.0, "training": "one"}
    return clipbias.TunedModel(task, moved(task), notes={**known, **(notes or {})})


@pytest.mark.ci
def test_an_adapter_holds_the_constants(clip, tmp_path):
    model = model_of(clip, "ivlp", depth=2)
    raw = pixels()[0]
    biases = measured(model.task, model.learnables, model.task.init(3))
    trainings = {}
    for kind, method in {"vector": "bias", "kind": "bias_by_kind"}.items():
        clipbias.equivalent_bias(model, raw, kind, batch_size=5).save(tmp_path / "bias.safetensors")
        again = clipbias.load_adapter(tmp_path / "bias.safetensors", clip)
        assert (again.task.method_name, again.task.texts) == (method, model.task.texts)
        assert again.notes["dataset"] == "demo/digits" and "accuracy" not in again.notes
        assert again.learnables.keys() == {f"{tower}_bias" for tower in TOWERS}
        for tower in TOWERS:
            np.testing.assert_allclose(again.learnables[f"{tower}_bias"], getattr(biases[tower], kind), atol=1e-6)
        assert "Nothing was tuned: " in model_card(again, "checkpoint")
        dataset = Dataset("demo/digits", CLASS_NAMES, "a photo of a {}.", {})
        (_, bound) = studies.bind_models([again], dataset)
        assert bound.name == "Equivalent bias of IVLP"
        trainings[kind] = again.notes["training"]
    # Other seeds of one training are one training again, and those of another are another.
    for notes in ({"seed": 4}, {"training": "another"}):
        other = model_of(clip, "ivlp", notes, depth=2)
        trainings[str(notes)] = clipbias.equivalent_bias(other, raw, "kind", batch_size=5).notes["training"]
    vector, kind, seed, another = trainings.values()
    assert seed == kind and len({vector, kind, another, "one"}) == 4


def test_it_computes_in_its_models_type(clip):
    made = clipbias.equivalent_bias(model_of(clip, "vpt", dtype="bfloat16"), pixels()[0])
    assert made.task.classifier.dtype == "bfloat16"


def test_images_come_in_several_ways(clip):
    images = split()
    raw = np.stack([pictures for pictures, _ in image_batches(clip.preprocessing, images, 1)])[:, 0]
    model = model_of(clip, "vpt")
    whole = clipbias.equivalent_bias(model, raw, batch_size=4).learnables
    assert whole.keys() == {"vision_bias"}
    for source in (images, clip.preprocess(raw)):
        fitted = clipbias.equivalent_bias(model, source, batch_size=4).learnables
        np.testing.assert_allclose(fitted["vision_bias"], whole["vision_bias"], atol=1e-6)


@pytest.mark.ci
def test_a_study_measures_on_training_images(clip, tmp_path):
    made_study = make(clip, tmp_path, training=split().subset([6, 3, 1]))
    (model,) = made_study.tuned
    measured_biases = made_study.run({"it": measure_equivalent_biases(made_study, [model])})["it"]["vpt"]
    batches = image_batches(clip.preprocessing, made_study.training, 3)
    expected, _ = measure_equivalent_bias(model.task, clip.params, model.learnables, model.task.init(), batches)
    for form in FORMS:
        vector = getattr(measured_biases["vision"], form)
        np.testing.assert_allclose(vector, getattr(expected["vision"], form), rtol=0, atol=1e-6)


def test_a_study_leaves_out_what_it_cannot_measure(clip, tmp_path):
    bare = make(clip, tmp_path)
    task = Task(clip, "taskres", CLASS_NAMES)
    models = [bare.tuned[0], Model("own", "Own", Tuned(task, task.init()))]
    assert bare.run({"it": measure_equivalent_biases(bare, models)})["it"] == {}
