"""Texts of classes: templates, descriptions as the classifier and as a teacher's texts, texts of any kind."""

import dataclasses

import jax
import numpy as np
import pytest

from clipbias.analysis.relevancy import relevancy
from clipbias.clip.tokenizer import encode
from clipbias.errors import ClipbiasError
from clipbias.tuning import Task
from clipbias.tuning.prompts import CHOICES, choose_templates
from clipbias.tuning.tuned import Tuned
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


def test_texts_stand_alone(clip):
    task = Task(clip, "zero_shot", FREE, free_text=True)
    tokenizer = clip.tokenizer
    for i, words in enumerate(encode(tokenizer, list(FREE))):
        assert ids(task, i) == [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    assert task.texts == FREE
    assert ids(task, 0) != ids(Task(clip, "zero_shot", ("a dog on grass.",), free_text=True), 0)  # to the letter


@pytest.mark.parametrize("position", ["end", "front"])
def test_a_learned_context_stands_beside_them(clip, position):
    task = Task(clip, "coop", FREE, free_text=True, position=position)
    tokenizer = clip.tokenizer
    (context,) = encode(tokenizer, ["a photo of a"])
    for i, words in enumerate(encode(tokenizer, list(FREE))):
        middle = [*words, *context] if position == "front" else [*context, *words]
        assert ids(task, i) == [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]


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
    """More devices and parts only deal the texts out; a residual is added to the mean, of the texts' mean length."""
    lengths = [np.linalg.norm(features, axis=-1).mean() for features in raw]
    texts, classes = TEXTS, np.stack([numpy_clip.unit(raw[i]).mean(0) * length for i, length in enumerate(lengths)])
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
    several = {"templates": ("a {}.", "the {}.")}
    single, two = (Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS, **options) for options in ({}, several))
    assert single.classifier == dataclasses.replace(two.classifier, method=single.method) and single.texts == two.texts


def test_what_they_do_not_give_is_refused(pair, images):
    model = Tuned(Task(pair[0], "zero_shot", NAMES, descriptions=TEXTS))
    with pytest.raises(ClipbiasError, match="have no texts for the class 'dog'"):
        model.with_classes(("cat", "dog"))
    with pytest.raises(ClipbiasError, match="are descriptions, and maps follow the tokens of a template"):
        relevancy(model.task, pair[0].params, {}, images, [0, 1])


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
