"""Learnables for other classes: options that the relations do not try, caches, and names as a model reads them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Learnables, Task
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Method, crops_of, flatten, unflatten
from clipbias.tuning.tuned import match_labels, transfer
from tests.tuning.weights_common import close, pictures

NAMES = ("cat", "maine coon", "dog", "bird")
PERMUTED = (2, 0, 3, 1)
FEWER = (3, 1, 0)
# Beside the methods' defaults, which `tests/relations` tries.
CASES = [("coop", {"class_specific": True}), ("gda", {"keep_rows": True})]
# Only training images make a class, or its start is random.
REFUSED = (("linear_probe", {}), ("lp_plus_plus", {}), ("gda", {}), ("coop_16", {"class_specific": True}))


def tuned(task: Task) -> Learnables:
    """Learnables that are no start: with noise, and with eight images where there is a place for any number."""
    rng = np.random.default_rng(5)

    def changed(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        shape = [size or 8 for size in leaf.shape]
        if leaf.dtype.kind == "i":
            return (np.arange(8) % len(task.class_names)).astype(leaf.dtype)
        noise = rng.normal(scale=0.3, size=shape)
        return (noise if 0 in leaf.shape else leaf + noise).astype(np.float32)

    noisy = {name: changed(leaf) for name, leaf in flatten(task.init(seed=1)).items()}
    return task.read_classes(unflatten(noisy))


def views(task: Task) -> np.ndarray:
    size, crops = task.clip.config.vision.image_size, crops_of(task.method)
    images = pictures(size, 3 * (1 + crops))[1].astype(np.float32)
    return images.reshape(3, 1 + crops, *images.shape[1:]) if crops else images


@jax.jit(static_argnums=0)
def _logits(classifier: Any, *arguments: Any) -> jax.Array:
    return classifier.logits(*arguments)


def logits(task: Task, learnables: Learnables) -> np.ndarray:
    """Of one program for all classes of one number."""
    return np.asarray(_logits(task.classifier, task.clip.params, learnables, views(task), task.tokens))


def bound(clip: Clip, name: str, classes: Any = NAMES, **options: Any) -> Task:
    return Task(clip, name, tuple(classes), **options)


@pytest.fixture(scope="module")
def small(clips) -> Clip:
    return clips("smallest")[0]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_classes_keep_their_logits(small, name, options):
    task = bound(small, name, **options)
    learnables = tuned(task)
    whole = logits(task, learnables)
    assert not np.allclose(whole, logits(task, task.init(seed=1)), atol=1e-3)
    other = task.with_classes([NAMES[i] for i in PERMUTED])
    close(logits(other, transfer(task, other, learnables)), whole[:, PERMUTED], 1e-5)
    part = task.with_classes([NAMES[i] for i in FEWER])
    kept = transfer(task, part, learnables)
    close(logits(part, kept), whole[:, FEWER], 1e-5)
    if (name, options) not in REFUSED:
        close(logits(task, transfer(part, task, kept))[:, FEWER], whole[:, FEWER], 1e-5)


@pytest.mark.parametrize(("name", "options"), REFUSED, ids=str)
def test_a_class_without_a_start_is_refused(small, name, options):
    task = bound(small, name, NAMES[:3], **options)
    with pytest.raises(ClipbiasError, match="other classes"):
        transfer(task, task.with_classes(NAMES), tuned(task))


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (3, 0, 1, 0)], ids=str)
def test_classes_on_another_axis_are_refused(small, shape):
    """Rows alone would follow their classes; 0 stands for the number of classes."""

    @dataclasses.dataclass(frozen=True)
    class Confusions(Method):
        def init(self, rng: jax.Array, clip: Clip, class_names: Any) -> Learnables:
            return {"confusions": np.zeros([size or len(class_names) for size in shape])}

        def adapt(self, learnables: Learnables) -> Adaptation:
            return Adaptation()

    task = Task(small, Confusions(), NAMES)
    with pytest.raises(ClipbiasError, match=r"'confusions' of shape .* not its first axis alone; define its hook tran"):
        transfer(task, task.with_classes([NAMES[i] for i in PERMUTED]), task.init())


def zero_shot_logits(task: Task) -> np.ndarray:
    """Plain CLIP's, with the factor of a task's method."""
    clip = task.clip
    factor = np.exp(np.asarray(task.method.logit_scale(clip.params)) - clip.params["logit_scale"])
    return np.asarray(factor) * logits(bound(clip, "zero_shot", task.class_names), {})


@pytest.mark.parametrize("name", ["taskres", "tip_adapter", "tip_adapter_f", "clap", "zs_lp"])
def test_a_new_class_has_the_zero_shot_logit(small, name):
    task = bound(small, name, NAMES[:3])
    more = task.with_classes(("maine_coon", "bird", "cat", "dog"))
    moved = logits(more, transfer(task, more, tuned(task)))
    close(moved[:, 1], zero_shot_logits(more)[:, 1], 1e-5)
    close(moved[:, [2, 0, 3]], logits(task, tuned(task)), 1e-5)


def test_a_class_is_known_by_its_name_as_the_model_reads_it(small):
    task = bound(small, "taskres", ("cat", "maine_coon", "dog"))
    learnables = tuned(task)
    rows = learnables["text_residual"]
    other = bound(small, "taskres", ("Maine  coon", "bird", "CAT"))
    np.testing.assert_array_equal(transfer(task, other, learnables)["text_residual"], [rows[1], 0 * rows[0], rows[0]])
    np.testing.assert_array_equal(match_labels("abac", "caaba"), [3, 0, 2, 1, -1])
    # By position, for classes of other names; and for several runs.
    by_position = transfer(task, other, learnables, (2, 0, -1))["text_residual"]
    np.testing.assert_array_equal(by_position, [rows[2], rows[0], 0 * rows[0]])
    runs = transfer(task, other, {"text_residual": np.stack([rows, 2 * rows])}, (2, 0, -1), axis=1)["text_residual"]
    np.testing.assert_array_equal(runs, [by_position, 2 * by_position])


def test_calibration_stays_where_nothing_is_different(small):
    task = bound(small, "mmrl")
    scores = Calibration.of(np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 4, 1.0)
    model = TunedModel(task, tuned(task), calibration=scores)
    assert model.with_classes([name.replace(" ", "_") for name in NAMES]).calibration is scores
    assert model.with_classes(NAMES[::-1]).calibration is None
