"""Descriptions of classes as the classifier and as a teacher's texts, against a plain computation."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.explain.relevancy import relevancy
from clipbias.export import export
from clipbias.settings import from_config
from clipbias.training.evaluate import fingerprint
from clipbias.training.spec import RunSpec
from clipbias.training.sweep import make_specs
from clipbias.tuning import Descriptions, Task, read_descriptions
from clipbias.tuning.adapter import read_adapter, save_adapter
from configs import evaluate as evaluate_config
from configs import table1 as table1_config
from experiments import evaluate, table1
from tests import helpers
from tests.reference import methods, numpy_clip, teachers
from tests.training.sweeps import TinySweep
from tests.tuning.test_teacher_runs import RECIPE

NAMES = ("cat", "maine_coon", "a bird")
TEXTS = {
    "cat": ["a cat.", "a photo of the cat"],
    "maine coon": ["a golden coon of the type maine coon"],
    "a_bird": ["bird", "a bird of a photo", "a painting of the bird"],
    "another class": ["dog"],
}


@pytest.fixture(scope="module")
def raw(pair) -> list[np.ndarray]:
    """Un-normalised features of the texts of each class, text by text."""
    clip = pair[1]
    return [
        np.concatenate([teachers.plain_text(clip, ["x"], text) for text in texts])
        for texts in (TEXTS["cat"], TEXTS["maine coon"], TEXTS["a_bird"])
    ]


@pytest.fixture(scope="module")
def images(pair) -> np.ndarray:
    return helpers.random_images(pair[1].config, 2)


def plain_logits(pair, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    reference = pair[1]
    image = numpy_clip.encode_image(reference.state, reference.config, images).features
    return numpy_clip.logits(reference.state, image, classes)


@pytest.mark.ci
def test_the_classifier_is_the_mean_of_each_classs_own_texts(pair, raw, images) -> None:
    task = Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS)
    expected = plain_logits(pair, images, np.stack([numpy_clip.unit(features).mean(0) for features in raw]))
    text = jax.jit(task.text_input)(pair[0].params, {})
    logits = jax.jit(task.logits)(pair[0].params, {}, images, text)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    # More devices and parts only deal the texts out.
    split = Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS).with_memory(class_chunks=2, class_shards=2)
    np.testing.assert_allclose(
        jax.jit(split.logits)(pair[0].params, {}, images), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.long
def test_a_residual_is_added_to_their_mean(pair, raw, images) -> None:
    task = Task(pair[0], "taskres", NAMES, descriptions=TEXTS)
    residual = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    classes = np.stack([numpy_clip.unit(of_class).mean(0) for of_class in raw]) + 0.5 * residual
    logits = jax.jit(task.logits)(pair[0].params, {"text_residual": residual}, images)
    expected = plain_logits(pair, images, classes)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    of_class = {name: texts[:1] for name, texts in TEXTS.items()}  # a single text is taken as it is
    classes = np.stack([features[0] for features in raw]) + 0.5 * residual
    alone = Task(pair[0], "taskres", NAMES, descriptions=of_class)
    logits = jax.jit(alone.logits)(pair[0].params, {"text_residual": residual}, images)
    expected = plain_logits(pair, images, classes)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_an_ensemble_gives_way_to_them(pair) -> None:
    single, two = (Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS, **options) for options in ({}, OF_TWO))
    assert single.classifier == dataclasses.replace(two.classifier, method=single.method) and single.texts == two.texts


OF_TWO = {"templates": ("a {}.", "the {}.")}


@pytest.mark.parametrize("method", ["coop", "vpt", "bias", "ivlp"])
def test_a_method_with_a_prompt_of_its_own_keeps_it(pair, method) -> None:
    with_them, without = (Task(pair[0], method, NAMES, descriptions=descriptions) for descriptions in (TEXTS, None))
    assert with_them.texts == without.texts and with_them.descriptions is None
    assert with_them.classifier == without.classifier


def test_the_teacher_of_kgcoop(pair, raw, images) -> None:
    task = Task(pair[0], "kgcoop", NAMES, descriptions=TEXTS, weight=2.0)
    learnables = {"text_context": methods.random_learnables(pair[1].config, "coop", 3)["text_context"]}
    saved = methods.forward(pair[1], methods.prepare(pair[1], "coop", NAMES, learnables), images)
    teacher = numpy_clip.unit(np.stack([numpy_clip.unit(features).mean(0) for features in raw]))
    labels = np.array([2, 0])
    loss = numpy_clip.cross_entropy(saved.logits, labels)
    loss += 2 * (1 - (numpy_clip.unit(saved.text_features) * teacher).sum(-1).mean())
    loss_of_task = jax.jit(task.loss)(pair[0].params, jax.tree.map(np.float32, learnables), images, labels)
    assert float(loss_of_task) == pytest.approx(loss, rel=1e-5)


@pytest.mark.long
def test_the_teacher_of_promptsrc_averages_them_as_they_are(pair, raw, images) -> None:
    task = Task(pair[0], "promptsrc", NAMES, descriptions=TEXTS, depth=2)
    learnables = methods.random_learnables(pair[1].config, "ivlp", 3, text_depth=2, vision_depth=2)
    saved = methods.forward(pair[1], methods.prepare(pair[1], "ivlp", NAMES, learnables), images)
    image = numpy_clip.unit(numpy_clip.encode_image(pair[1].state, pair[1].config, images).features)
    teacher = {"text": numpy_clip.unit(np.stack([features.mean(0) for features in raw])), "image": image}
    expected = teachers.promptsrc_losses(pair[1], saved, teacher, np.array([2, 0]))
    loss = jax.jit(task.loss)(pair[0].params, jax.tree.map(np.float32, learnables), images, np.array([2, 0]))
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-5)


COLOUR_TEXTS = {"red": ["a cat", "a dog of a photo"], "green": ["a painting"], "blue": ["the bird", "the dog", "cat"]}


@pytest.mark.long
def test_rows_and_adapters_depend_on_them(pair, colours, tmp_path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    name = "tip_adapter"

    def described(texts: dict[str, list[str]] | None) -> TinySweep:
        texts = texts and Descriptions(texts)
        return TinySweep(pair[0], dataclasses.replace(colours, descriptions=texts), recipe, tmp_path)

    tiny = described(COLOUR_TEXTS)
    (spec,) = tiny.specs(name, seeds=(1,))
    (row,) = tiny.run([spec])
    assert row["status"] == "ok", row.get("error")
    assert [group_spec.key for group_spec in described(dict(COLOUR_TEXTS)).specs(name, seeds=(1,))] == [spec.key]
    for texts in (None, {**COLOUR_TEXTS, "red": ["a cat", "a dog of a photo."]}):
        assert spec.key not in {group_spec.key for group_spec in described(texts).specs(name, seeds=(1,))}
    settings = {"template": colours.template, "descriptions": COLOUR_TEXTS}
    kgcoop = Task(pair[0], "kgcoop", colours.class_names, **settings)
    save_adapter(tmp_path / "kgcoop.safetensors", kgcoop, kgcoop.init())
    for adapter, method, descriptions in (
        (tiny.adapter(spec), spec.make_method(), COLOUR_TEXTS),
        (read_adapter(tmp_path / "kgcoop.safetensors"), "kgcoop", None),  # its teacher's alone
    ):
        assert adapter.descriptions == descriptions
        expected = Task(pair[0], method, colours.class_names, **settings)
        bound = adapter.task(pair[0])  # the same classifier of the same texts
        assert bound.classifier == expected.classifier
        jax.tree.map(np.testing.assert_array_equal, bound.text, expected.text)


@pytest.fixture(scope="module")
def saved(pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(path, Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS), {})
    return path


def test_an_adapter_for_other_classes(pair, saved) -> None:
    adapter = read_adapter(saved)
    assert adapter.task(pair[0], ("a_bird", "cat")).texts[:2] == ("bird", "a cat.")
    with pytest.raises(ClipbiasError, match="the adapter's descriptions have no texts for the class 'dog'"):
        adapter.task(pair[0], ("cat", "dog"))
    task, _ = adapter.bind(pair[0], ("dog",), descriptions={"dog": ["a dog"]})
    assert task.texts == ("a dog",)


def test_it_is_exported_as_a_head_and_not_explained(pair, saved, images, tmp_path) -> None:
    adapter = read_adapter(saved)
    assert export(adapter, pair[0], tmp_path / "out") == "head"
    assert read_adapter(tmp_path / "out").descriptions == adapter.descriptions
    with pytest.raises(ClipbiasError, match="are descriptions, and maps follow the tokens of a template"):
        relevancy(adapter.task(pair[0]), pair[0].params, {}, images, [0, 1])


@pytest.fixture
def files(tmp_path) -> tuple[Path, str]:
    """Texts of the classes of a dataset in a file, and how a configuration names such files."""
    names = clipbias.data.load("demo/digits").class_names
    path = tmp_path / "demo_digits.json"
    texts = {name: [f"a photo of the {name}", "a cat"][: 1 + i % 2] for i, name in enumerate(names)}
    path.write_text(json.dumps(texts))
    return path, str(tmp_path / "{dataset}.json")


def specs_of(settings: table1_config.Table1Settings) -> list[RunSpec]:
    axes = table1.axes_of(settings)
    context, rates = table1.prepare(settings, axes)
    return make_specs(context, settings.recipe, axes, rates)


def test_a_sweep_reads_them(pair, files) -> None:
    path, named = files
    config = table1_config.get_config()
    config.update({"model": pair[0].source, "methods": ("zero_shot",), "datasets": ("demo/digits",)})
    config.update({"descriptions": named, "rates_file": None})
    settings = from_config(table1_config.Table1Settings, config)
    (before,) = specs_of(settings)
    assert before.descriptions == read_descriptions(path).digest
    path.write_text(json.dumps({name: ["a cat"] for name in json.loads(path.read_text())}))
    (after,) = specs_of(settings)
    assert after.descriptions == read_descriptions(path).digest != before.descriptions


@pytest.mark.long
def test_an_evaluation_reads_them(pair, files, tmp_path) -> None:
    path, named = files
    config = evaluate_config.get_config()
    config.model = pair[0].source
    config.dataset = "demo/digits"
    config.descriptions = named
    evaluate.main(from_config(evaluate_config.EvaluateSettings, config), tmp_path / "work")
    result, texts = json.loads((tmp_path / "work" / "result.json").read_text()), json.loads(path.read_text())
    task = Task(pair[0], "zero_shot", list(texts), descriptions=texts)
    images = clipbias.data.load("demo/digits").split("test")
    assert result["fingerprint"] == fingerprint(task, {}, "zero_shot", images)
