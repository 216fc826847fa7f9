"""Tasks for these tests, and a model whose evidence lies where the test puts it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip
from clipbias.clip.params import init_params
from clipbias.tuning import Task

CLASS_NAMES = ("cat", "maine_coon", "golden retriever")


def tuned(clip: Clip, method: str, **options: Any) -> tuple[Task, dict[str, jax.Array]]:
    """A task and learnables far from where they start."""
    task = Task(clip, method, CLASS_NAMES, **options)
    keys = jax.random.split(jax.random.key(3), 8)
    moved = {
        name: value + 0.3 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, task.init().items(), strict=False)
    }
    return task, moved


def moved(task: Task) -> Any:
    """Learnables of any structure far from where they start; whole numbers stay."""
    leaves, structure = jax.tree.flatten(task.init())
    keys = jax.random.split(jax.random.key(4), len(leaves))
    return structure.unflatten(
        leaf + 0.3 * jax.random.normal(key, leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    )


def transparent(clip: Clip) -> dict[str, Any]:
    """Parameters of a model that can be worked out by hand.

    Every block lets each token look evenly at all tokens (queries and keys are zero) and adds what it sees; MLPs add
    nothing. So `[cls]` sums up the patches, and a patch speaks for a class as far as its token points its way.
    """
    params = jax.tree.map(np.array, jax.jit(functools.partial(init_params, clip.config))(jax.random.key(0)))
    tower, width = params["vision"], clip.config.vision.width
    layers = tower["layers"]
    for part in ("qkv", "out", "fc1", "fc2"):
        layers[part]["kernel"][:] = 0
    layers["qkv"]["kernel"][:, :, 2 * width :] = np.eye(width)
    layers["out"]["kernel"][:] = np.eye(width)
    tower["position_embedding"][:] = 0
    return jax.tree.map(jnp.asarray, params)
