"""Predictions that are kept are found again; features, evaluations and teachers never mix lists of equal names."""

import dataclasses

import numpy as np
import pytest

from clipbias.data import Split
from clipbias.training.evaluate import KnownPredictions, save_predictions
from clipbias.tuning import Task

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
