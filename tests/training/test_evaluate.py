"""Evaluations against single images; predictions that are kept are found again, and those of other inputs never."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn import metrics

from clipbias.clip import Clip
from clipbias.data import Split
from clipbias.training import calibration, placement
from clipbias.training.batches import Reading
from clipbias.training.evaluator import Budget, Evaluator
from clipbias.training.forward import encode_texts, make_evaluation, outcomes
from clipbias.training.predictions import KnownPredictions, save_predictions
from clipbias.training.predictor import evaluate
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables
from clipbias.tuning.methods.taskres import TaskRes
from clipbias.tuning.tuned import Tuned
from tests.training.conftest import damaged


def logits_by_hand(clip: Clip, task: Task, learnables: Learnables, split: Split) -> np.ndarray:
    """Of one image at a time, with PIL alone for the pixels; one that cannot be read is left out."""
    size = clip.config.vision.image_size
    rows = []
    logits_of = jax.jit(task.logits)
    for index in range(len(split)):
        encoded = split.read(index)
        if encoded == b"broken":
            continue
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        width, height = image.size
        short = min(width, height)
        image = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
        left, top = ((side - size) // 2 for side in image.size)  # as transformers rounds
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        normal = (pixels / 255 - np.array(clip.preprocessing.mean)) / np.array(clip.preprocessing.std)
        rows.append(np.asarray(logits_of(clip.params, learnables, normal[None].astype(np.float32)), float)[0])
    return np.stack(rows)


@pytest.mark.ci
def test_accuracy_calibration_and_detection_are_those_of_single_images(clip, colours):
    mesh = placement.make_mesh(run=1, data=8)
    task = Task(clip, "bias", colours.class_names).with_memory(class_shards=8)
    learnables = jax.tree.map(
        lambda x: x + np.float32(0.3 * np.random.default_rng(x.size).normal(size=x.shape)), jax.device_get(task.init())
    )
    test = colours.split("test")
    validation = colours.split("train")
    outside = damaged(colours.split("val"), 1)
    settings = dict(mesh=mesh, eval_batch_size=4, on_image_error="skip", validation=validation, outside=outside)
    result, _ = evaluate(Tuned(task, learnables), test, **settings)
    here, held, away = (logits_by_hand(clip, task, learnables, split) for split in (test, validation, outside))
    correct = here.argmax(1) == test.labels
    assert result["images"] == len(test) == 15
    assert result["correct"] == correct.sum()
    assert result["accuracy"] == pytest.approx(100 * result["correct"] / 15)
    macro_f1 = metrics.f1_score(test.labels, here.argmax(1), average="macro")
    assert result["class_summary"]["macro_f1"] == pytest.approx(100 * macro_f1)
    chosen = calibration.temperature_images(test, validation)
    assert chosen is not None and np.bincount(chosen.labels).tolist() == [4, 4, 4]
    temperature = calibration.fit_temperature(held[[validation.keys.index(key) for key in chosen.keys]], chosen.labels)
    errors = result["calibration"]
    assert errors["validation_images"] == 12
    assert errors["temperature"] == pytest.approx(temperature, rel=1e-3)
    kinds = {"ece": calibration.expected_calibration_error, "adaptive_ece": calibration.adaptive_calibration_error}
    for scale, suffix in ((1.0, ""), (temperature, "_at_temperature")):
        sure = softmax(here / scale, axis=1).max(1)
        for name, error in kinds.items():
            assert errors[name + suffix] == pytest.approx(100 * error(sure, correct), abs=2e-2)
    assert result["ood"]["images"] == len(away) == len(outside) - 1
    labels = np.repeat([1, 0], [len(here), len(away)])
    for name, score in (("max_logit", lambda z: z.max(1)), ("max_softmax", lambda z: softmax(z, axis=1).max(1))):
        expected = metrics.roc_auc_score(labels, np.concatenate([score(here), score(away)]))
        assert result["ood"][name]["auroc"] == pytest.approx(100 * expected, abs=1e-6)


@pytest.mark.ci
def test_kept_features_change_nothing(clip, colours):
    mesh = placement.single_device()
    params = placement.replicate(mesh, clip.params)
    shared = Evaluator(colours.split("test"), Reading(mesh), batch_size=4, budget=Budget(1 << 20))
    task = Task(clip, "coop", colours.class_names)
    learnables = jax.tree.map(lambda x: np.stack([x, -x]), task.init())
    static, inputs = make_evaluation(task, params, learnables, runs=2, mesh=mesh)
    labels = colours.split("test").labels
    scores = [shared.evaluate(static, inputs).scores(labels, task.class_names) for _ in range(2)]
    assert scores[0] == scores[1]
    model = Tuned(task, task.init())
    alone, _ = evaluate(model, colours.split("test"), mesh=mesh, eval_batch_size=4, on_image_error="raise")
    both = scores[0][0]
    assert both["calibration"] == pytest.approx(alone["calibration"], abs=2e-4)  # another program, rounded to 4 digits
    assert both | {"calibration": 0} == alone | {"calibration": 0}


def test_an_evaluation_runs_where_a_cpu_has_no_half_precision(clip, colours):
    """XLA compiles a conversion to float16 for newer instruction sets than SSE 4.2; files have it all the same."""
    evaluator = Evaluator(colours.split("test"), Reading(placement.single_device()), batch_size=4)
    task = Task(clip, "zero_shot", colours.class_names)
    static, inputs = make_evaluation(task, clip.params, {}, runs=1, mesh=evaluator.mesh)
    images = np.zeros((1, 4, clip.config.projection_width), np.float32)
    arrays = images, np.ones(4, bool), np.zeros(4, np.int32), np.ones(1, np.float32)
    assert "f16" not in outcomes.lower(static, encode_texts(static, inputs), *arrays).as_text()
    assert evaluator.evaluate(static, inputs).log_probs.dtype == np.float16


NAMES = ("red", "green", "blue")
PREDICTED = np.array([0, 2, -1, 1], np.int32)


def read(index):
    return bytes([index])


@pytest.fixture
def case(clip):
    task = Task(clip, "taskres", NAMES)
    split = Split(("a.png", "b.png", "ü/c.png", "d.png"), np.array([0, 1, 2, 1]), read)
    learnables = {name: np.asarray(value) + 0.25 for name, value in task.init().items()}
    return {"model": Tuned(task, learnables), "split": split}


def test_predictions_are_found_again_and_users_can_read_them(case, tmp_path):
    save_predictions(tmp_path, "a method on demo/digits", **case, predicted=PREDICTED)
    with np.load(tmp_path / "predictions" / "a_method_on_demo_digits.npz", allow_pickle=False) as stored:
        assert stored["images"].tolist() == list(case["split"].keys)
        assert stored["labels"].tolist() == [0, 1, 2, 1] and stored["class_names"].tolist() == list(NAMES)
        np.testing.assert_array_equal(stored["predicted"], PREDICTED)
    known = KnownPredictions([tmp_path / "nowhere", tmp_path]).find(**case)
    np.testing.assert_array_equal(known, PREDICTED)


class Another(TaskRes):
    """A method of one's own, which learns as much."""


def test_nothing_is_found_of_another_model_or_other_images(clip, case, tmp_path):
    save_predictions(tmp_path, "test", **case, predicted=PREDICTED)
    known = KnownPredictions([tmp_path])
    split, model = case["split"], case["model"]
    learnables = model.learnables
    others = {
        "learnables": {name: np.nextafter(value, 9) for name, value in learnables.items()},
        "type": {"text_residual": learnables["text_residual"].astype(np.float16)},
        "method": Task(clip, Another(), NAMES),
        "weights": Task(dataclasses.replace(clip, published="0" * 64), "taskres", NAMES),
        "template": Task(clip, "taskres", NAMES, template="a sketch of a {}."),
        "label": Split(split.keys, np.array([0, 1, 2, 2]), read),
        "image": Split(("a.png", "b.png", "ü/c.png", "e.png"), split.labels, read),
        "content": Split(split.keys, split.labels, lambda index: bytes([index + 1])),
        "order": split.subset([1, 0, 2, 3]),
    }
    for name, other in others.items():
        if isinstance(other, Split):
            changed = {"split": other}
        else:
            part = "task" if isinstance(other, Task) else "learnables"
            changed = {"model": dataclasses.replace(model, **{part: other})}
        assert known.find(**(case | changed)) is None, name
    assert known.find(**case) is not None


def test_damaged_files_count_as_not_there(case, tmp_path):
    save_predictions(tmp_path, "test", **case, predicted=np.array([0, 1, 2, 3]))  # there is no class 3
    assert KnownPredictions([tmp_path]).find(**case) is None
    (path,) = (tmp_path / "predictions").iterdir()
    known = KnownPredictions([tmp_path])
    path.write_bytes(path.read_bytes()[:-40])
    assert known.find(**case) is None and KnownPredictions([tmp_path]).find(**case) is None
