"""Distilled models: what is read, fitted and selected, the certificate against NumPy, and the checkpoint in torch."""

import dataclasses
import json
import re
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax

import clipbias
from clipbias import TunedModel, distillation
from clipbias.analysis.replacement import Comparison, Origin, Student
from clipbias.clip import Clip
from clipbias.data.images import Images
from clipbias.distillation import divide_images, select
from clipbias.errors import UnreadableImage
from clipbias.intervals import Estimate
from clipbias.training import placement
from clipbias.training.spec import data_notes, seen_in_training
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter
from experiments.evaluate import validation_images
from tests.export import models
from tests.training.conftest import COLOURS, colour_dataset, damaged
from tests.tuning.weights_common import drawn

pytestmark = pytest.mark.ci

NAMES = tuple(COLOURS)
DATA = colour_dataset()
SPLITS = DATA.splits
QUICK: dict[str, Any] = {"steps": 3, "learning_rate": 0.05, "batch_size": 8, "progress": False}
# Heads, conditional texts, prompts in both towers, patches, inserted tokens.


def tuned(clip: Clip, method: str, size: float = 0.4) -> TunedModel:
    task = Task(clip, method, DATA)
    return TunedModel(task, drawn(task.shapes, size), {"dataset": "colours", "shots": 4, "seed": 1})


@pytest.fixture(scope="module")
def long(tiny) -> Clip:
    """With room for the texts of all methods."""
    return tiny(context_length=48)[0]


@pytest.fixture(scope="module")
def distilled(clip: Clip) -> clipbias.Distilled:
    return distil(clip, "vector")


def distil(clip: Clip, form: str | None) -> clipbias.Distilled:
    return clipbias.distil(tuned(clip, "ivlp"), DATA, form=form, mesh=placement.single_device(), **QUICK)


def pixels(clip: Clip) -> np.ndarray:
    images = Images(DATA.split("test"))
    return np.stack([images.evaluated(index, clip.preprocessing.resizing) for index in range(len(images))])


def test_the_certificate_against_numpy(clip, distilled):
    found = distilled.certificate
    frozen = Task(clip, "zero_shot", NAMES, template="a photo of a {}.")
    model = tuned(clip, "ivlp")
    pairs = ((model.task, model.learnables), (distilled.model.task, distilled.model.learnables), (frozen, {}))
    teacher, student, plain = (models.task_logits(task, learnables, pixels(clip)) for task, learnables in pairs)
    labels = DATA.split("test").labels
    decided = [logits.argmax(-1) for logits in (teacher, student, plain)]
    assert found.images == 15 and found.student.form == "vector"
    accuracies = [(each == labels).mean() for each in decided]
    assert found.accuracy == pytest.approx(accuracies[1])
    assert found.agreement.value == pytest.approx((decided[0] == decided[1]).mean())
    moved = decided[0] != decided[2]
    assert 0 < moved.sum() == found.moved_images and found.moved is not None
    assert found.moved.value == pytest.approx((decided[0] == decided[1])[moved].mean())
    log_p, log_q = (log_softmax(logits.astype(np.float64), -1) for logits in (teacher, student))
    assert found.divergence.value == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-3)
    assert found.difference is not None and found.difference.value == pytest.approx(accuracies[1] - accuracies[0])
    assert found.gain is not None
    assert found.gain.accuracy.value == pytest.approx(100 * (accuracies[1] - accuracies[2]))
    numbers, of_teacher = (sum(map(np.size, jax.tree.leaves(each.learnables))) for each in (distilled.model, model))
    assert found.student.numbers == numbers
    (candidate,) = distilled.candidates
    assert candidate.student == found.student and candidate.images == 5 and candidate.accuracy is None
    held_back = divide_images(DATA).held_back
    of_held_back = Images(held_back)
    raw = np.stack([of_held_back.evaluated(index, clip.preprocessing.resizing) for index in range(5)])
    taught, learned = (models.task_logits(task, learnables, raw) for task, learnables in pairs[:2])
    assert candidate.agreement.value == pytest.approx((taught.argmax(-1) == learned.argmax(-1)).mean())
    log_p, log_q = (log_softmax(logits.astype(np.float64), -1) for logits in (taught, learned))
    of_split = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert candidate.divergence.value == pytest.approx(of_split, rel=1e-3)
    assert candidate.student.held_back_divergence == pytest.approx(of_split, rel=1e-3)
    assert found.margin is not None
    first, second, third, fourth = distilled.sentences
    assert f"{100 * accuracies[1]:.1f} % right and ivlp {100 * accuracies[0]:.1f} %" in first
    assert f"rules out a loss of more than {100 * found.margin:.1f} points" in first
    assert f"{found.divergence.value:.3g} nats" in second and f"of the {found.moved_images} whose" in third
    assert f"{numbers:,} numbers" in fourth and f"{of_teacher:,}" in fourth


def test_no_image_is_in_two_lists():
    for images, count in ((divide_images(DATA), 39), (divide_images(SPLITS["train"]), 18)):
        lists = [set(split.keys) for split in (images.fitted, images.held_back, images.certified)]
        assert sum(map(len, lists)) == len(set.union(*lists)) == count and all(lists)
        assert not images.fitted.labels.any() and not images.held_back.labels.any()
    overlapping = dataclasses.replace(DATA, splits={**SPLITS, "val": SPLITS["test"]})  # as of ImageNet
    images = divide_images(overlapping)
    assert len(images.fitted) + len(images.held_back) == len(SPLITS["train"])


def test_a_student_remembers_which_images_trained_it_and_its_teacher(clip):
    """Its own validation images trained it, so they fit no temperature."""
    teacher = tuned(clip, "ivlp")
    other = dataclasses.replace(DATA, splits={**SPLITS, "train": SPLITS["train"].subset(range(9))})
    for taught_on, learned_on in ((DATA, DATA), (other, DATA), (DATA, other)):
        notes = data_notes(taught_on, teacher.task.classes, "few_shot")
        parts = divide_images(learned_on, dataclasses.replace(teacher, notes=notes))
        assert bool(parts.caution) == (taught_on is not learned_on)
        student = clipbias.distil(
            dataclasses.replace(teacher, notes=notes),
            learned_on,
            form="vector",
            mesh=placement.single_device(),
            **QUICK,
        ).model
        said = seen_in_training(student.notes, DATA, student.task.classes)
        assert bool(said) == (other in (taught_on, learned_on))
        assert validation_images(DATA, DATA.name, student.notes) is None
    assert validation_images(DATA, "cars", student.notes) is SPLITS["val"]


def test_a_table_that_is_trained_and_tested_on_is_refused():
    """As a single table of Hugging Face; a split of it is divided."""
    single = dataclasses.replace(DATA, splits={"train": SPLITS["train"], "test": SPLITS["train"]})
    with pytest.raises(clipbias.ClipbiasError, match="there are 0 unlabelled images that are not among the test"):
        divide_images(single)
    assert len(divide_images(single.split("train")).certified) == 4


def test_pictures_without_labels(clip, capsys):
    pictures = [Image.fromarray(SPLITS["train"].image(index)) for index in range(18)]
    found = clipbias.distil(tuned(clip, "ivlp"), pictures, form="vector", mesh=placement.single_device(), **QUICK)
    certificate = found.certificate
    assert certificate.accuracy is None and certificate.margin is None and len(found.sentences) == 3
    assert certificate.images == 4
    assert "accuracy" not in found.model.notes
    assert "".join(capsys.readouterr()) == ""  # without progress nothing is printed


def test_a_broken_picture_of_the_certificate_is_named_before_the_first_fit(clip, monkeypatch):
    broken = dataclasses.replace(DATA, splits={**SPLITS, "test": damaged(SPLITS["test"], 1)})
    monkeypatch.setattr(distillation, "fit_student", None)
    with pytest.raises(UnreadableImage, match=re.escape(SPLITS["test"].path(1))):
        clipbias.distil(tuned(clip, "ivlp"), broken, mesh=placement.single_device(), **QUICK)


@pytest.mark.long
def test_without_a_form_all_that_fold_are_fitted(clip):
    found = distil(clip, None)
    assert [each.student.form for each in found.candidates] == ["vector", "layer_norm", "lora"]
    assert found.certificate.student.form == select(found.candidates)


def fit(form: str, numbers: int, agreement: float) -> Comparison:
    student = Student(Origin.FITTED, form, form, numbers, 0.1, 0.1)
    return Comparison(student, 1, 10, 0, Estimate(0.1), Estimate(agreement), None, None, None, None)


def test_the_smallest_form_within_a_point_of_the_best():
    assert select([fit("a", 10, 0.88), fit("b", 20, 0.895), fit("c", 30, 0.90)]) == "b"
    assert select([fit("c", 30, 0.80), fit("a", 10, 0.90)]) == "a"
    assert select([fit("a", 10, 0.5), fit("c", 30, 0.9)]) == "c"


def test_it_learns_and_into_another_base(clip, long):
    """More steps bring the vector nearer to what it can be: a teacher that is bias tuning itself, small."""
    model = tuned(clip, "bias", 0.1)
    options: dict[str, Any] = {"form": "vector", "batch_size": 8, "progress": False, "mesh": placement.single_device()}
    few, many = (clipbias.distil(model, DATA, steps=steps, **options) for steps in (1, 40))
    assert many.certificate.divergence.value < 0.3 * few.certificate.divergence.value
    other = clipbias.distil(model, DATA, clip=long, steps=2, **options)
    assert other.model.clip is long


def test_the_folder_has_the_certificate(clip, distilled, tmp_path):
    out = tmp_path / "out"
    assert distilled.model.export(out) == "checkpoint"
    certificate = json.loads((out / "certificate.json").read_text())
    stored = dataclasses.asdict(distilled.certificate)
    assert {name: certificate[name] for name in stored} == json.loads(json.dumps(stored))
    assert certificate["margin"] == distilled.certificate.margin and certificate["teacher"]["method"] == "ivlp"
    card = (out / "README.md").read_text()
    assert all(sentence.removesuffix(".") in card.replace("\\", "") for sentence in distilled.sentences)
    assert "images per class" not in card  # those of the teacher
    assert read_adapter(out).notes["certificate"] == certificate


@pytest.mark.long
def test_two_vectors_stay_an_adapter(clip, tmp_path):
    found = distil(clip, "kind")
    assert found.model.export(tmp_path / "out") == "program" and "it stays an adapter" in found.sentences[-1]
