"""Equivalent biases: against the float64 reference, put in the method's place, as adapters and in a study."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import clipbias
from clipbias.clip import Clip
from clipbias.constants import TOWERS
from clipbias.data.transforms import Resizing
from clipbias.explain.bias_adapter import raw_batches
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.constants_section import compute_constants
from clipbias.explain.equivalent_bias import measure_equivalent_bias
from clipbias.explain.intervention_classifier import InterventionClassifier
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.outcomes import outcomes
from clipbias.explain.results import ConstantTest, ConstantTests, EquivalentBias, Missing
from clipbias.explain.study import Study
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, save_adapter
from tests.explain.models import moved
from tests.explain.test_study import make, split
from tests.reference import equivalent_bias as plain
from tests.reference import inner_parts, methods, mma, weight_tuning
from tests.reference.cases import CASES, CLASS_NAMES
from tests.tuning import test_clip_lora, weights_common

LABELS = np.array([4, 0, 2, 2, 1])
FORMS = ("vector", "kind")
TOLERANCE = 2e-5  # of the largest number, in float32

# In the middle of the text, from random vectors, with a map from one tower to the other;
# `test_intervention_classifier` has IVLP.
PROMPTS: dict[str, dict[str, Any]] = {
    "maple_two_layers": {"tokens": 2, "depth": 2},
    "coop_placeholders_middle": {"tokens": 7, "position": "middle"},
    "coop_class_specific_front": {"tokens": 4, "class_specific": True, "words": "", "position": "front"},
}


def pixels(count: int = len(LABELS)) -> tuple[np.ndarray, np.ndarray]:
    """Raw and normalised, `[B, R, R, 3]`."""
    return weights_common.pictures(16, count)


def measured(task: Task, learnables: Any, initial: Any = None, batch_size: int = 5) -> dict[str, EquivalentBias]:
    initial = task.init() if initial is None else initial
    return measure_equivalent_bias(
        task, task.clip.params, learnables, initial, raw_batches(pixels()[0], Resizing(16), batch_size)
    )[0]


def assert_forms(
    actual: dict[str, EquivalentBias], expected: dict[str, plain.Forms], tolerance: float = TOLERANCE
) -> None:
    assert actual.keys() == expected.keys()
    for tower, forms in expected.items():
        for form, values in forms.items():
            weights_common.close(getattr(actual[tower], form), values, tolerance, f"{tower} {form}")


@pytest.mark.ci
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_equivalent_bias_of_the_reference(
    name: str, clip: Clip, reference: methods.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr("clipbias.explain.block_changes._TEXTS_AT_ONCE", 2)
    assert_forms(measured(task, learnables, start), expected)


@pytest.mark.ci
def test_tuned_weights_have_the_equivalent_bias_of_the_reference(clip: Clip, reference: methods.Reference) -> None:
    plain_inputs = methods.prepare(reference, "zero_shot", CLASS_NAMES, {})
    lora = Task(clip, "clip_lora", CLASS_NAMES)
    pairs = test_clip_lora.start(lora)
    norms = Task(clip, "layer_norm", CLASS_NAMES, outer=True)
    changes = moved(norms)
    changed = weights_common.named(changes)
    for task, learnables, state in (
        (lora, pairs, weight_tuning.fold_lora(reference.state, test_clip_lora.named(lora, pairs))),
        (norms, changes, reference.state | {key: reference.state[key] + value for key, value in changed.items()}),
    ):
        expected = {
            "vision": plain.of_images(reference, state, plain_inputs, pixels()[1]),
            "text": plain.of_texts(reference, state, plain_inputs, plain_inputs),
        }
        assert_forms(measured(task, learnables), expected)


@pytest.mark.long
def test_networks_beside_blocks_have_the_equivalent_bias_of_the_reference(
    clip: Clip, reference: methods.Reference
) -> None:
    task = Task(clip, "mma", CLASS_NAMES, blocks=2, width=6, factor=0.05)
    learnables = weights_common.drawn(task.shapes, 0.4)
    ids = inner_parts.worded_tokens(reference, CLASS_NAMES, methods.WORDED)
    inputs = {"vision": (pixels()[1], np.zeros(len(LABELS), int)), "text": (ids, ids.argmax(-1))}
    expected = {}
    for tower, (inputs_of_tower, rows) in inputs.items():
        networks = mma.Adapters(inner_parts.flatten(learnables), tower, 3, 0.05).forward
        start = inner_parts.embedded(reference, tower, inputs_of_tower)
        run = inner_parts.forward(reference, tower, start, rows, network=networks)
        tokens = [*(block.tokens for block in run.blocks), run.last]
        expected[tower] = plain.of_tokens(reference, tower, tokens, rows)
    biases = measured(task, learnables)
    # What is added is small beside the tokens that it is the difference of.
    assert_forms(biases, expected, 2e-4)
    assert not np.abs(biases["vision"].vector[0]).max() > 1e-6


def test_several_contexts_of_a_class_are_averaged(clip: Clip, reference: methods.Reference) -> None:
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


def saved(folder: Path, method: str, clip: Clip, **options: Any) -> tuple[Path, Task, Any]:
    task = Task(clip, method, CLASS_NAMES, **options)
    learnables = moved(task)
    path = folder / f"{method}.safetensors"
    save_adapter(path, task, learnables, notes={"dataset": "demo/digits", "seed": 3, "accuracy": 50.0})
    return path, task, learnables


ADAPTERS = {"vector": "bias", "kind": "bias_by_kind"}


@pytest.mark.ci
def test_an_adapter_holds_the_constants(clip: Clip, tmp_path: Path) -> None:
    path, task, learnables = saved(tmp_path, "ivlp", clip, depth=2)
    raw = pixels()[0]
    biases = measured(task, learnables, task.init(3))
    for kind, method in ADAPTERS.items():
        model = clipbias.equivalent_bias(clipbias.load_adapter(path, clip), raw, kind, batch_size=5)
        model.save(tmp_path / "bias.safetensors")
        again = read_adapter(tmp_path / "bias.safetensors")
        assert again.method == method and again.template == task.template
        assert again.notes["dataset"] == "demo/digits" and "accuracy" not in again.notes
        assert again.notes["equivalent_bias"] == {"method": "ivlp", "options": task.options(), "images": len(LABELS)}
        bound, bias = again.bind(clip)
        assert bound.class_names == task.class_names and bias.keys() == {f"{tower}_bias" for tower in TOWERS}
        for tower in TOWERS:
            np.testing.assert_allclose(bias[f"{tower}_bias"], getattr(biases[tower], kind), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_classifies_as_the_constant_in_place(kind: str, clip: Clip, tmp_path: Path) -> None:
    path, task, learnables = saved(tmp_path, "ivlp", clip, depth=2)
    raw, _ = pixels()
    model = clipbias.equivalent_bias(clipbias.load_adapter(path, clip), raw, kind)
    biases = measured(task, learnables)
    images = clip.preprocessing.normalize(raw)
    start = reference_adaptation(task, task.init(3))
    constants = {tower: bias.constants(kind) for tower, bias in biases.items()}
    classify = InterventionClassifier(task, clip.params, learnables, start, {kind: constants})
    expected = np.asarray(outcomes(classify(images), jnp.asarray(LABELS))["log_likelihood"])
    logits = jax.jit(model.task.logits)(clip.params, model.learnables, images)
    likelihood = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(LABELS)), LABELS]
    np.testing.assert_allclose(likelihood, expected[1], atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_images_come_in_several_ways(clip: Clip, tmp_path: Path) -> None:
    path, *_ = saved(tmp_path, "vpt", clip)
    images = split()
    raw = np.stack([pictures for pictures, _ in raw_batches(images, Resizing(16), 1)])[:, 0]
    model = clipbias.load_adapter(path, clip)
    whole = clipbias.equivalent_bias(model, raw, batch_size=4).learnables["vision_bias"]
    for source in (images, [raw[:3], raw[3:]]):
        fitted = clipbias.equivalent_bias(model, source, batch_size=4)
        np.testing.assert_allclose(fitted.learnables["vision_bias"], whole, atol=1e-6)
        assert fitted.learnables.keys() == {"vision_bias"} and fitted.task.options()["text_tower"] is False


@pytest.fixture(scope="module")
def constants(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, ConstantTests]:
    """VPT learned twice on one dataset and twice on another."""
    task = Task(clip, "vpt", CLASS_NAMES)
    models = [Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {})]
    for number, (key, dataset) in enumerate({"a": "one", "b": "one", "c": "two", "d": "two"}.items()):
        drawn = weights_common.drawn(task.shapes, 0.3, number)
        models.append(Model(key, key, "vpt", task, drawn, seed=1 + number % 2, trained_on=dataset))
    options = StudyOptions(batch_size=3, image_limit=4, training_images=3)
    folder = tmp_path_factory.mktemp("constants")
    study = Study(models, split(), options, folder, training=split().subset([6, 5, 3, 1]))
    return study, study.run_section(compute_constants(study))


@pytest.mark.ci
def test_a_study_measures_on_training_images(constants: tuple[Study, ConstantTests], clip: Clip) -> None:
    study = constants[0]
    test = constants[1].models["a"]
    assert isinstance(test, ConstantTest)
    outcomes = test.outcomes
    assert (len(outcomes.images), test.training_images) == (4, 3)
    names = ("vector", "kind", "random", "another dataset")
    forms = ("reference", *(f"kept:{name}" for name in names), *(f"lost:{name}" for name in names), "tuned")
    layers, width = clip.config.vision.layers, clip.config.vision.width
    assert test.forms == forms and test.stored == {"vector": layers * width, "kind": 2 * layers * width}
    task = study.models[1].task
    learnables = study.models[1].learnables
    training = split().subset([6, 3, 1])
    expected, _ = measure_equivalent_bias(
        task, clip.params, learnables, learnables, raw_batches(training, Resizing(16), 3)
    )
    for form in ("vector", "kind"):
        vector = getattr(test.biases["vision"], form)
        np.testing.assert_allclose(vector, getattr(expected["vision"], form), rtol=0, atol=1e-6)
    assert outcomes.images.tolist() == study.spread(4).tolist()
    assert outcomes.correct.dtype == np.uint8
    assert outcomes.log_likelihood.shape == (4, len(forms))
    shown = clip.preprocessing.normalize(study.pictures(study.spread(4)))
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, shown), np.float64)
    true = scipy.special.log_softmax(logits, axis=-1)[np.arange(4), study.split.labels[study.spread(4)]]
    np.testing.assert_allclose(outcomes.log_likelihood[:, -1], true, atol=1e-5)
    places = {form: place for place, form in enumerate(forms)}
    for outcome, name, unit in (("accuracy", "correct", 100), ("calibrated", "calibrated", 1)):
        means = unit * getattr(outcomes, name).astype(float).mean(0)
        numbers = test.summary[outcome]
        gain = means[places["tuned"]] - means[places["reference"]]
        assert numbers.gain.value == pytest.approx(gain, rel=1e-5)
        for form in names:
            share = numbers.kept[form].value
            assert share == pytest.approx(means[places[f"kept:{form}"]] - means[places["reference"]], abs=1e-5)
            lost = means[places["tuned"]] - means[places[f"lost:{form}"]]
            assert numbers.lost[form].value == pytest.approx(lost, abs=1e-5)


def test_the_constant_of_another_dataset_is_a_control(constants: tuple[Study, ConstantTests]) -> None:
    """What the frozen model makes of another model's constant is what that model's own study finds."""
    _, tests = constants
    assert [group.models for group in tests.seeds] == [("a", "b"), ("c", "d")]

    def column(key: str, form: str) -> np.ndarray:
        test = tests.models[key]
        assert isinstance(test, ConstantTest) and f"lost:{form.partition(':')[2]}" in test.forms
        return test.outcomes.log_likelihood[:, test.forms.index(form)]

    for key, other in (("a", "c"), ("d", "b")):
        np.testing.assert_allclose(column(key, "kept:another dataset"), column(other, "kept:kind"), atol=1e-5)
        assert np.abs(column(key, "kept:another dataset") - column(key, "kept:kind")).max() > 1e-2


@pytest.mark.long
def test_a_study_says_what_it_cannot_measure(clip: Clip, tmp_path: Path) -> None:
    bare = make(clip, tmp_path)
    test = bare.run_section(compute_constants(bare)).models["vpt"]
    assert isinstance(test, Missing) and "training images" in test.reason
    task = Task(clip, "taskres", CLASS_NAMES)
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {}),
        Model("own", "Own", "own", task, task.init()),
    ]
    study = Study(models, split(), StudyOptions(), tmp_path, training=split())
    test = study.run_section(compute_constants(study)).models["own"]
    assert isinstance(test, Missing) and "Neither tokens nor weights" in test.reason
