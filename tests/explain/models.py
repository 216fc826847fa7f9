"""Tasks for these tests, and a model whose evidence lies where the test puts it."""

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


def transparent(clip: Clip) -> dict[str, Any]:
    """Parameters of a model that can be worked out by hand.

    Every block lets each token look evenly at all tokens (queries and keys are zero) and adds what it sees; MLPs add
    nothing. So `[cls]` sums up the patches, and a patch speaks for a class as far as its token points its way.
    """
    params = jax.tree.map(np.array, clip.params)
    tower = params["vision"]
    width = clip.config.vision.width
    for path, leaf in jax.tree_util.tree_leaves_with_path(tower):
        names = [part.key for part in path]
        if any("norm" in name for name in names):
            leaf[:] = names[-1] == "scale"
        elif names[-1] == "bias":
            leaf[:] = 0
    layers = tower["layers"]
    for part in ("qkv", "out", "fc1", "fc2"):
        layers[part]["kernel"][:] = 0
    layers["qkv"]["kernel"][:, :, 2 * width :] = np.eye(width)
    layers["out"]["kernel"][:] = np.eye(width)
    tower["position_embedding"][:] = 0
    return params
