"""Predictions that are kept are found again; features, evaluations and teachers never mix lists of equal names."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.data.files import split_of_files
from clipbias.data.images import Images
from clipbias.data.tables import from_hub_dataset
from clipbias.training.context import make_context
from clipbias.training.evaluate import KnownPredictions, save_predictions
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning import Recipe, Task
from tests.data.pictures import picture
from tests.data.test_user_datasets import FEATURES, Table, encoded
from tests.training.sweeps import TinySweep

NAMES = ("red", "green", "blue")
PREDICTED = np.array([0, 2, -1, 1], np.int32)


def read(index):
    return bytes([index])


@pytest.fixture
def case(clip):
    task = Task(clip, "taskres", NAMES)
    split = Split(("a.png", "b.png", "ü/c.png", "d.png"), np.array([0, 1, 2, 1]), read)
    learnables = {name: np.asarray(value) + 0.25 for name, value in task.init().items()}
    return {"task": task, "learnables": learnables, "method": "taskres", "split": split}


def test_predictions_are_found_again_and_users_can_read_them(case, tmp_path):
    save_predictions(tmp_path, "a method on demo/digits", **case, predicted=PREDICTED)
    (path,) = (tmp_path / "predictions").iterdir()
    assert path.name == "a_method_on_demo_digits.npz"
    with np.load(path, allow_pickle=False) as stored:
        assert stored["images"].tolist() == list(case["split"].keys)
        assert stored["labels"].tolist() == [0, 1, 2, 1]
        assert stored["class_names"].tolist() == list(NAMES)
        np.testing.assert_array_equal(stored["predicted"], PREDICTED)
    known = KnownPredictions([tmp_path / "nowhere", tmp_path]).find(**case)
    np.testing.assert_array_equal(known, PREDICTED)


def test_nothing_is_found_of_another_model_or_other_images(clip, case, tmp_path):
    save_predictions(tmp_path, "test", **case, predicted=PREDICTED)
    known = KnownPredictions([tmp_path])
    split = case["split"]
    learnables = case["learnables"]
    nudged = {name: np.nextafter(value, 9) for name, value in learnables.items()}
    darker = dataclasses.replace(clip, preprocessing=dataclasses.replace(clip.preprocessing, mean=(0.1, 0.1, 0.1)))
    others = {
        "learnables": nudged,
        "type": learnables | {"text_residual": learnables["text_residual"].astype(np.float16)},
        "method": "another",
        "weights": Task(dataclasses.replace(clip, fingerprint="0" * 64), "taskres", NAMES),
        "preprocessing": Task(darker, "taskres", NAMES),
        "template": Task(clip, "taskres", NAMES, template="a sketch of a {}."),
        "options": Task(clip, "taskres", NAMES, alpha=1.0),
        "precision": Task(clip, "taskres", NAMES, dtype="bfloat16"),
        "classes": Task(clip, "taskres", NAMES[::-1]),
        "label": Split(split.keys, np.array([0, 1, 2, 2]), read),
        "image": Split(("a.png", "b.png", "ü/c.png", "e.png"), split.labels, read),
        "order": split.subset([1, 0, 2, 3]),
    }
    places = {"learnables": "learnables", "type": "learnables", "method": "method"}
    for name, other in others.items():
        place = places.get(name, "task" if isinstance(other, Task) else "split")
        assert known.find(**(case | {place: other})) is None, name
    assert known.find(**case) is not None


def test_damaged_files_count_as_not_there(case, tmp_path):
    save_predictions(tmp_path, "test", **case, predicted=np.array([0, 1, 2, 3]))  # there is no class 3
    assert KnownPredictions([tmp_path]).find(**case) is None
    (path,) = (tmp_path / "predictions").iterdir()
    known = KnownPredictions([tmp_path])
    path.write_bytes(path.read_bytes()[:-40])
    assert known.find(**case) is None and KnownPredictions([tmp_path]).find(**case) is None


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
@pytest.mark.parametrize(("kind", "method"), [("pil", "gda"), ("files", "tip_adapter"), ("table", "gda")])
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
        logits = jax.jit(model.task.logits)(clip.params, {}, clip.preprocess(pixels(int(name))))
        np.testing.assert_array_equal(predicted, np.asarray(logits).argmax(-1))


@pytest.mark.ci
def test_a_teacher_and_pseudo_labels_are_of_the_list(clip: Clip, tmp_path: Path) -> None:
    context = make_context(clip, None, dtype="float32")
    teacher = Teacher(Task(clip, "zero_shot", CLASSES), {})
    splits: list[Split] = [whole(tmp_path, seed).split("train") for seed in (1, 2)]
    for seed, split in zip((1, 2), splits, strict=True):
        logits, _ = split_logits(teacher, Images(split), context)
        expected = jax.jit(teacher.task.logits)(clip.params, {}, clip.preprocess(pixels(seed)))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        predicted = np.asarray(expected).argmax(-1)
        dataset = Dataset("folder", CLASSES, "a photo of a {}.", {"train": split, "test": split})
        picked = context.pseudo_labelled(protocols.pseudo_labels(dataset, shots=2, seed=1), 2)
        margin = np.abs(np.asarray(expected)[:, 0] - np.asarray(expected)[:, 1])  # of two classes, how sure it is
        surest = [
            row for c in (0, 1) for row in sorted(np.flatnonzero(predicted == c), key=lambda row: -margin[row])[:2]
        ]
        assert {split.keys.index(key) for key in picked.keys} == {int(row) for row in surest}
