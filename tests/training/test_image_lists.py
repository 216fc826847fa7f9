"""Lists of equal names and other pictures: features, evaluations, predictions and teachers never mix them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias import data
from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.data.files import split_of_files
from clipbias.data.images import Images
from clipbias.data.protocols import default_targets
from clipbias.data.tables import from_hub_dataset
from clipbias.training.context import make_context
from clipbias.training.device import Compute
from clipbias.training.evaluate import KnownPredictions, save_predictions
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning import Recipe, Task
from tests.data.pictures import picture
from tests.data.test_user_datasets import FEATURES, Table, encoded
from tests.training.sweeps import TinySweep

CLASSES = ("cat", "dog")
LABELS = [0, 1] * 6


def pixels(seed: int) -> list[np.ndarray]:
    """12 pictures of one size, whose files have one size too."""
    return [picture(100 * seed + number) for number in range(12)]


def folder(top: Path, seed: int) -> Path:
    for number, image in enumerate(pixels(seed)):
        path = top / str(seed) / CLASSES[LABELS[number]] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return top / str(seed)


def whole(top: Path, seed: int, split: str = "train") -> Dataset:
    """All pictures of a folder, as one split."""
    keys = [f"{CLASSES[label]}/{number}.bmp" for number, label in enumerate(LABELS)]
    images = split_of_files(folder(top, seed), keys, LABELS)
    return Dataset("folder", CLASSES, "a photo of a {}.", {split: images})


def hub(seed: int) -> Dataset:
    columns = {"image": [{"bytes": encoded(image), "path": None} for image in pixels(seed)], "label": LABELS}
    return from_hub_dataset(Table(columns, {"image": FEATURES["image"], "label": FEATURES["label"]}))


@pytest.mark.filterwarnings("ignore:the tuned model is no better than zero-shot")
@pytest.mark.parametrize("kind", ["pil", "files", "table"])
@pytest.mark.parametrize("method", ["gda", "tip_adapter"])
def test_a_model_is_made_of_the_training_images(clip: Clip, kind: str, method: str, tmp_path: Path) -> None:
    """Not of validation images of equal names; arrays are the independent computation."""
    expected = clipbias.fit(clip, method, pixels(1), LABELS, class_names=CLASSES, validation=(pixels(2), LABELS))
    if kind == "pil":
        pil = [[Image.fromarray(image) for image in pixels(seed)] for seed in (1, 2)]
        model = clipbias.fit(clip, method, pil[0], LABELS, class_names=CLASSES, validation=(pil[1], LABELS))
    else:
        train, validation = (
            hub(seed).split("train") if kind == "table" else whole(tmp_path, seed).split("train") for seed in (1, 2)
        )
        model = clipbias.fit(clip, method, train, class_names=CLASSES, validation=validation)
    assert model.task.method == expected.task.method  # what it selected
    jax.tree.map(np.testing.assert_array_equal, model.learnables, expected.learnables)


@pytest.mark.ci
def test_every_target_is_evaluated_on_its_images(clip: Clip, recipe: Recipe, tmp_path: Path) -> None:
    source = Dataset(
        "1", CLASSES, "a photo of a {}.", {name: whole(tmp_path, 1).split("train") for name in ("train", "test")}
    )
    targets = {
        str(seed): Dataset(str(seed), CLASSES, source.template, whole(tmp_path, seed, "test").splits) for seed in (2, 3)
    }
    tiny = TinySweep(
        clip, {"1": source, **targets}, recipe, tmp_path, protocol="domain_generalization", targets=tuple(targets)
    )
    (row,) = tiny.rows("zero_shot")
    model = clipbias.TunedModel(Task(clip, "zero_shot", source), {})
    for name, dataset in {"1": source, **targets}.items():
        expected = model.evaluate(dataset)
        assert row["accuracies"][name] == expected.accuracy
        assert row["calibrations"][name]["ece"] == pytest.approx(expected.calibration["ece"], abs=1e-4)
        predicted = KnownPredictions([tmp_path]).find(model.task, {}, "zero_shot", dataset.split("test"))
        logits = model.task.logits(clip.params, {}, clip.preprocess(pixels(int(name))))
        np.testing.assert_array_equal(predicted, np.asarray(logits).argmax(-1))


def test_predictions_of_another_folder_are_not_found(clip: Clip, tmp_path: Path) -> None:
    task = Task(clip, "zero_shot", CLASSES)
    one, two = (whole(tmp_path, seed).split("train") for seed in (1, 2))
    save_predictions(tmp_path, "test", task, {}, "zero_shot", one, np.zeros(12, np.int32))
    known = KnownPredictions([tmp_path])
    assert known.find(task, {}, "zero_shot", two) is None
    assert known.find(task, {}, "zero_shot", whole(tmp_path, 1).split("train")) is not None
    Image.fromarray(picture(5, height=30)).save(tmp_path / "1" / "cat" / "0.bmp")
    replaced = split_of_files(tmp_path / "1", one.keys, LABELS)
    assert known.find(task, {}, "zero_shot", replaced) is None


@pytest.mark.ci
def test_a_teacher_and_pseudo_labels_are_of_the_list(clip: Clip, tmp_path: Path) -> None:
    context = make_context(clip, None, dtype="float32")
    teacher = Teacher(Task(clip, "zero_shot", CLASSES), {})
    splits: list[Split] = [whole(tmp_path, seed).split("train") for seed in (1, 2)]
    for seed, split in zip((1, 2), splits, strict=True):
        logits, _ = split_logits(teacher, Images(split), context)
        expected = teacher.task.logits(clip.params, {}, clip.preprocess(pixels(seed)))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        predicted = np.asarray(expected).argmax(-1)
        dataset = Dataset("folder", CLASSES, "a photo of a {}.", {"train": split, "test": split})
        picked = context.pseudo_labelled(protocols.pseudo_labels(dataset, shots=2, seed=1), 2)
        margin = np.abs(np.asarray(expected)[:, 0] - np.asarray(expected)[:, 1])  # of two classes, how sure it is
        surest = [
            row for c in (0, 1) for row in sorted(np.flatnonzero(predicted == c), key=lambda row: -margin[row])[:2]
        ]
        assert {split.keys.index(key) for key in picked.keys} == {int(row) for row in surest}


def test_rows_of_a_folder_are_not_those_of_another(clip: Clip, recipe: Recipe, tmp_path: Path) -> None:
    """The same work folder, the same settings, and another folder of images: another run."""
    keys = []
    for seed in (1, 2, 1):
        images = whole(tmp_path, seed).split("train")
        dataset = Dataset("folder", CLASSES, "a photo of a {}.", {"train": images, "test": images})
        tiny = TinySweep(clip, dataset, recipe, tmp_path / "work", compute=Compute(trackers=(), eval_batch_size=8))
        keys.append([spec.key for spec in tiny.specs("zero_shot")])
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.ci
@pytest.mark.parametrize("protocol", ["domain_generalization", "cross_dataset"])
def test_tables_of_the_demo_are_its_evaluations(protocol: str, recipe: Recipe, tmp_path: Path) -> None:
    """Its three styles of emoji have the same names and labels; every prediction of the table is that of `evaluate`."""
    clip = clipbias.load("demo")
    names = ("demo/emoji", *default_targets(protocol, "demo/emoji"))
    datasets = {name: data.load(name) for name in names}
    tiny = TinySweep(
        clip, datasets, recipe, tmp_path, protocol=protocol, targets=names[1:], compute=Compute(trackers=())
    )
    (row,) = tiny.rows("zero_shot")
    for name, dataset in datasets.items():
        model = clipbias.TunedModel(Task(clip, "zero_shot", dataset), {})
        expected = model.evaluate(dataset)
        assert row["accuracies"][name] == expected.accuracy
        predicted = KnownPredictions([tmp_path]).find(model.task, {}, "zero_shot", dataset.split("test"))
        assert predicted is not None
        np.testing.assert_array_equal(predicted, expected.predicted)
