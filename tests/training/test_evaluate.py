import io

import jax
import numpy as np
import pytest
from PIL import Image

from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import Evaluator, evaluate
from clipbias.training.step import place_text
from clipbias.tuning import Task


def by_hand(clip: Clip, task: Task, learnables, split: Split) -> int:
    """The number of correct images, one at a time, with PIL alone for the pixels."""
    size, correct = clip.config.vision.image_size, 0
    logits_of = jax.jit(task.logits)
    for index in range(len(split)):
        image = Image.open(io.BytesIO(split.read(index))).convert("RGB")
        width, height = image.size
        short = min(width, height)
        image = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        normal = (pixels / 255 - np.array(clip.preprocessing.mean)) / np.array(clip.preprocessing.std)
        logits = logits_of(clip.params, learnables, normal[None].astype(np.float32))
        correct += int(np.argmax(logits)) == split.labels[index]
    return correct


@pytest.mark.parametrize(
    ("method", "devices"), [("zero_shot", 1), ("bias", 1), ("bias", 8), ("maple", 1), ("maple", 8)]
)
def test_accuracy_is_that_of_single_images(clip: Clip, colours: Dataset, method: str, devices: int) -> None:
    mesh = meshes.make_mesh(run=1, data=devices)
    task = Task(clip, method, colours.class_names, groups=devices)
    learnables = jax.tree.map(
        lambda x: x + np.float32(0.3 * np.random.default_rng(x.size).normal(size=x.shape)), jax.device_get(task.init())
    )
    split = colours.split("test")
    score = evaluate(task, learnables, split, mesh=mesh, eval_batch_size=4, on_image_error="raise")
    assert score["images"] == len(split) == 15
    assert score["correct"] == by_hand(clip, task, learnables, split)
    assert score["accuracy"] == pytest.approx(100 * score["correct"] / 15)


def test_kept_features_change_nothing(clip: Clip, colours: Dataset) -> None:
    mesh = meshes.single_device()
    params = meshes.replicate(mesh, clip.params)
    evaluator = Evaluator(clip, params, colours.split("test"), mesh=mesh, batch_size=4)
    task = Task(clip, "coop", colours.class_names)
    learnables = jax.tree.map(lambda x: np.stack([x, -x]), task.init())
    text = place_text(mesh, task, params)
    scores = [evaluator.accuracy(task.classifier, learnables, text, runs=2) for _ in range(2)]
    assert scores[0] == scores[1]
    assert evaluator._plain_features is not None
    alone = evaluate(task, task.init(), colours.split("test"), mesh=mesh, eval_batch_size=15, on_image_error="raise")
    assert scores[0][0] == alone


def broken(split: Split) -> Split:
    def read(index: int) -> bytes:
        return b"not an image" if index == 1 else split.read(index)

    return Split(split.keys, split.labels, read)


def test_an_unreadable_image_is_named_or_skipped(clip: Clip, colours: Dataset) -> None:
    split, mesh, task = broken(colours.split("test")), meshes.single_device(), Task(clip, "zero_shot", ("a", "b", "c"))
    with pytest.raises(ClipbiasError, match=r"2/1\.png"):
        evaluate(task, {}, split, mesh=mesh, eval_batch_size=4, on_image_error="raise")
    score = evaluate(task, {}, split, mesh=mesh, eval_batch_size=4, on_image_error="skip")
    assert score["images"] == 14
    assert score["skipped_images"] == 1


def test_no_images(clip: Clip, colours: Dataset) -> None:
    empty = colours.split("test").subset([])
    task = Task(clip, "zero_shot", ("a", "b"))
    with pytest.raises(ClipbiasError, match="no image to evaluate on"):
        evaluate(task, {}, empty, mesh=meshes.single_device(), eval_batch_size=4, on_image_error="raise")
