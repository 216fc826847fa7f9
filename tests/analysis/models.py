"""Tasks for these tests."""

from typing import Any

import jax
import numpy as np

from clipbias.clip import Clip
from clipbias.tuning import CONSTANTS, Task
from tests.tuning import weights_common

CLASS_NAMES = ("cat", "maine_coon", "golden retriever")


def tuned(clip: Clip, method: str, **options: Any) -> tuple[Task, dict[str, np.ndarray]]:
    """A task and learnables far from where they start."""
    task = Task(clip, method, CLASS_NAMES, **options)
    return task, moved(task)


def moved(task: Task) -> Any:
    """Learnables of any structure far from where they start; whole numbers stay. Drawn without a program."""
    leaves, structure = jax.tree.flatten(task.shapes)
    if all(np.issubdtype(leaf.dtype, np.floating) for leaf in leaves) and CONSTANTS not in task.shapes:
        return weights_common.drawn(task.shapes, 0.3, seed=4)
    leaves = structure.flatten_up_to(task.init())
    draw = np.random.default_rng(4)
    return structure.unflatten(
        np.asarray(leaf) + np.float32(0.3) * draw.normal(size=leaf.shape).astype(np.float32)
        if np.issubdtype(leaf.dtype, np.floating)
        else np.asarray(leaf)
        for leaf in leaves
    )
