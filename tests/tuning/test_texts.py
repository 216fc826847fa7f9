"""Texts of classes: templates, descriptions as the classifier and as a teacher's texts, texts of any kind."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias.analysis.relevancy import relevancy
from clipbias.analysis.words import token_labels
from clipbias.clip.tokenizer import encode
from clipbias.errors import ClipbiasError
from clipbias.export import export
from clipbias.settings import from_config
from clipbias.training.spec import RunSpec
from clipbias.training.sweep import make_specs
from clipbias.tuning import Task, read_descriptions
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.prompts import CHOICES, choose_templates
from clipbias.tuning.tuned import Tuned
from configs import table1 as table1_config
from experiments import table1
from tests import helpers
from tests.reference import methods, numpy_clip

OWN = "{} texture."
FREE = ("a dog on_grass.", "two cats {}", "a dog")
NAMES = ("cat", "maine_coon", "a bird")
TEXTS = {
    "cat": ["a cat.", "a photo of the cat"],
    "maine coon": ["a golden coon of the type maine coon"],
    "a_bird": ["bird", "a bird of a photo", "a painting of the bird"],
    "another class": ["dog"],
}


def test_choices():
    assert [len(choose_templates(choice, OWN)) for choice in CHOICES] == [1, 7, 8, 60, 80]
    assert choose_templates("imagenet_select_and_dataset", OWN)[-1] == OWN
    assert choose_templates("my {}.", OWN) == ("my {}.",)
    assert choose_templates(("a {}.", "b {}."), OWN) == ("a {}.", "b {}.")


def ids(task: Task, text: int) -> list[int]:
    """The tokens of one text without those after its end."""
    return np.asarray(task.tokens.ids)[text, : task.tokens.eos[text] + 1].tolist()


@pytest.mark.parametrize("method", ["zero_shot", "bias", "vpt"])
def test_texts_stand_alone(clip, method):
    task = Task(clip, method, FREE, free_text=True)
    tokenizer = clip.tokenizer
    for i, words in enumerate(encode(tokenizer, list(FREE))):
        assert ids(task, i) == [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    assert task.texts == FREE
    assert ids(task, 0) != ids(Task(clip, method, ("a dog on grass.",), free_text=True), 0)  # to the letter


@pytest.mark.parametrize(("method", "options"), [("coop", {}), ("coop", {"position": "front"}), ("ivlp", {})])
def test_a_learned_context_stands_before_them(clip, method, options):
    task = Task(clip, method, FREE, free_text=True, **options)
    tokenizer = clip.tokenizer
    learned = [f"[{i}]" for i in range(1, 5)]
    for i, (words, context) in enumerate(
        zip(encode(tokenizer, list(FREE)), encode(tokenizer, ["a photo of a"] * 3), strict=True)
    ):
        middle = [*words, *context] if options else [*context, *words]
        assert ids(task, i) == [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
        labels = token_labels(task, i)
        assert labels[0] == "SOS"
        assert (labels[-4:] if options else labels[1:5]) == learned


@pytest.fixture(scope="module")
def raw(pair) -> list[np.ndarray]:
    """Un-normalised features of the texts of each class, text by text."""
    clip = pair[1]
    return [
        np.concatenate([methods.plain_text(clip, ["x"], text) for text in texts])
        for texts in (TEXTS["cat"], TEXTS["maine coon"], TEXTS["a_bird"])
    ]


@pytest.fixture(scope="module")
def images(pair) -> np.ndarray:
    return helpers.random_images(pair[1].config, 2)


def plain_logits(pair, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    reference = pair[1]
    image = methods.run_image(reference, images).features
    return numpy_clip.logits(reference.state, image, classes)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "memory"), [("zero_shot", {"class_chunks": 2, "class_shards": 2}), ("taskres", {}), ("single", {})]
)
def test_the_classifier_is_the_mean_of_each_classs_own_texts(pair, raw, images, method, memory):
    """More devices and parts only deal the texts out; a residual is added to the mean; one text is taken as it is."""
    texts, classes = TEXTS, np.stack([numpy_clip.unit(features).mean(0) for features in raw])
    if method == "single":
        texts, classes = {name: texts[:1] for name, texts in TEXTS.items()}, np.stack([one[0] for one in raw])
    task = Task(pair[0], "zero_shot" if memory else "taskres", NAMES, descriptions=texts).with_memory(**memory)
    learnables = jax.tree.map(
        lambda leaf: leaf + 0.3 * np.sin(np.arange(float(leaf.size))).reshape(leaf.shape), dict(task.init())
    )
    expected = plain_logits(pair, images, classes + 0.5 * learnables.get("text_residual", 0))
    logits = jax.jit(task.logits)(pair[0].params, learnables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_an_ensemble_gives_way_to_them(pair):
    single, two = (Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS, **options) for options in ({}, OF_TWO))
    assert single.classifier == dataclasses.replace(two.classifier, method=single.method) and single.texts == two.texts


OF_TWO = {"templates": ("a {}.", "the {}.")}


@pytest.mark.parametrize("method", ["coop", "vpt", "bias", "ivlp"])
def test_a_method_with_a_prompt_of_its_own_keeps_it(pair, method):
    with_them, without = (Task(pair[0], method, NAMES, descriptions=descriptions) for descriptions in (TEXTS, None))
    assert with_them.texts == without.texts and with_them.descriptions is None
    assert with_them.classifier == without.classifier


def test_the_teacher_of_kgcoop(pair, raw, images):
    task = Task(pair[0], "kgcoop", NAMES, descriptions=TEXTS, weight=2.0)
    learnables = {"text_context": methods.random_learnables(pair[1].config, "coop", 3)["text_context"]}
    saved = methods.forward(pair[1], methods.prepare(pair[1], "coop", NAMES, learnables), images)
    teacher = numpy_clip.unit(np.stack([numpy_clip.unit(features).mean(0) for features in raw]))
    labels = np.array([2, 0])
    loss = numpy_clip.cross_entropy(saved.logits, labels)
    loss += 2 * (1 - (numpy_clip.unit(saved.text_features) * teacher).sum(-1).mean())
    loss_of_task = jax.jit(task.loss)(pair[0].params, jax.tree.map(np.float32, learnables), images, labels)
    assert float(loss_of_task) == pytest.approx(loss, rel=1e-5)


@pytest.fixture(scope="module")
def saved(pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    write_adapter(path, Tuned(Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS)))
    return path


def test_an_adapter_for_other_classes(pair, saved):
    model = read_adapter(saved).bind(pair[0])
    assert model.with_classes(("a_bird", "cat")).task.texts[:2] == ("bird", "a cat.")
    with pytest.raises(ClipbiasError, match="the adapter's descriptions have no texts for the class 'dog'"):
        model.with_classes(("cat", "dog"))
    assert model.with_classes(("dog",), descriptions={"dog": ["a dog"]}).task.texts == ("a dog",)


def test_it_is_exported_as_a_head_and_not_explained(pair, saved, images, tmp_path):
    adapter = read_adapter(saved)
    model = adapter.bind(pair[0])
    assert export(model, tmp_path / "out") == "head"
    assert read_adapter(tmp_path / "out").descriptions == adapter.descriptions
    with pytest.raises(ClipbiasError, match="are descriptions, and maps follow the tokens of a template"):
        relevancy(model.task, pair[0].params, {}, images, [0, 1])


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


def test_a_sweep_reads_them(pair, files):
    path, named = files
    config = table1_config.get_config()
    config.update({"model": pair[0].source, "methods": ("zero_shot",), "datasets": ("demo/digits",)})
    config.update({"descriptions": named, "rates_file": None})
    settings = from_config(table1_config.Table1Settings, config)

    def task_of_file() -> str:
        classes = clipbias.data.load("demo/digits")
        return Task(pair[0], "zero_shot", classes, descriptions=read_descriptions(path)).identity

    (before,) = specs_of(settings)
    assert before.task == task_of_file()
    path.write_text(json.dumps({name: ["a cat"] for name in json.loads(path.read_text())}))
    (after,) = specs_of(settings)
    assert after.task == task_of_file() != before.task
