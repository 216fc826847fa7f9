"""Tuned models with learnables that matter, on a tiny CLIP."""

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import clipbias
from clipbias.clip import Clip
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned

CLASS_NAMES = ("cat", "maine_coon", "bird")
NOTES = {"dataset": "pets", "shots": 4, "seed": 1, "accuracy": 75.0}


def learned(task: Task, size: float = 0.3, seed: int = 0) -> Learnables:
    """Random learnables of a task's shapes; whole numbers are labels, and what may be of any length has four rows."""
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        constant = path[0].key == CONSTANTS
        shape = tuple(length or 4 if constant else length for length in leaf.shape)
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, len(task.class_names), shape, leaf.dtype)
        return np.float32(size * rng.normal(size=shape))

    return jax.tree_util.tree_map_with_path(one, task.shapes)


def tuned(clip: Clip, method: str, folder: Path, *, size: float = 0.3, **options: Any) -> Tuned:
    """A tuned model, written to `folder` and read back."""
    task = Task(clip, method, CLASS_NAMES, template="a {} of a pet.", **options)
    path = folder / "tuned.safetensors"
    write_adapter(path, Tuned(task, learned(task, size), NOTES))
    return read_adapter(path).bind(clip, own_methods=(method,))


def pictures(clip: Clip, count: int = 4, seed: int = 0) -> np.ndarray:
    """Random images, uint8 `[count, R, R, 3]`."""
    size = clip.config.vision.image_size
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _logits(classifier: Any, params: Any, learnables: Any, images: Any, text: Any) -> jax.Array:
    """Of equal classifiers, one program: those of all folded checkpoints, for one."""
    return classifier.logits(params, learnables, images, text)


def task_logits(task: Task, learnables: Any, images: np.ndarray) -> np.ndarray:
    """What a task says about uint8 images."""
    normal = task.clip.preprocessing.normalize(images)
    return np.asarray(_logits(task.classifier, task.clip.params, learnables, normal, task.text))


def logits(model: Tuned, images: np.ndarray) -> np.ndarray:
    """What the model itself says about uint8 images."""
    return task_logits(model.task, model.learnables, images)


def zero_shot_logits(folder: Path, images: np.ndarray, template: str = "a photo of a {}.") -> np.ndarray:
    """What an exported checkpoint says as a plain CLIP."""
    return task_logits(Task(clipbias.load(folder), "zero_shot", CLASS_NAMES, template=template), {}, images)


def card_code(folder: Path, block: int = 0) -> str:
    """A block of the code that a folder's card shows."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[block]


def run_card(folder: Path, image: np.ndarray | Image.Image, block: int = 0, **options: Any) -> dict[str, Any]:
    """Runs a block of a card's code in its folder on an image, which is saved with `options`; returns its variables."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(folder / "image.png", **options)
    variables: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(card_code(folder, block), variables)
    return variables


def assert_close(actual: Any, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal to float32 rounding, relative to the largest number."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() / np.abs(expected).max() < tolerance
