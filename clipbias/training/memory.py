"""What a training step needs of each device's memory, and how to make it fit.

Two knobs trade time for memory: what the backward pass keeps of each block (`remat`), and in how many parts the text
tower takes the classes (`class_chunks`). Both give the same numbers. The estimate counts what is large: weights,
learnables, what is kept of each block, and one block's own intermediates; a test holds it against the compiler's plan.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from clipbias.clip import layers
from clipbias.clip.config import TowerConfig
from clipbias.errors import ClipbiasError
from clipbias.training import flops
from clipbias.training import mesh as meshes
from clipbias.tuning import Task

AUTO = "auto"

# Share of a device's memory that an estimate may fill; the rest is for fragments, the compiler and other programs.
USABLE = 0.85

CHUNKS = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Remat:
    """One way to run the backward pass.

    Attributes:
      policy: a `jax.checkpoint_policies` policy, see `clipbias.clip.layers`.
      widths: arrays as wide as the tokens that are kept of each block, and `hidden` whether the MLP's is kept too.
      again: the share of the forward pass's products that is computed again.
    """

    policy: Callable[..., Any]
    widths: int
    hidden: bool
    again: float


# From the fastest to the smallest. `again` is of the products with weights: fc1 is a third of them.
REMATS = {
    "products": Remat(layers.keep_products, 5, True, 0.0),
    "half": Remat(layers.keep_half, 5, False, 1 / 3),
    "tokens": Remat(layers.keep_tokens, 1, False, 1.0),
}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """How a step runs and what it needs.

    Attributes:
      remat: a name of `REMATS`.
      chunks: parts in which each device takes its classes.
      bytes: estimated memory of one device.
      limit: memory of one device; 0 where the device does not tell.
      flop: multiplications and additions of one step on all devices.
    """

    remat: str
    chunks: int
    bytes: int
    limit: int
    flop: int

    @property
    def fits(self) -> bool:
        """Whether the estimate leaves room."""
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Task` that make it so; none for the fastest way."""
        if (self.remat, self.chunks) == (next(iter(REMATS)), 1):
            return {}
        return {"remat": REMATS[self.remat].policy, "chunks": self.chunks}

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        classes = f", classes in {self.chunks} parts" if self.chunks > 1 else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device (keeping {self.remat}{classes})"


def device_limit() -> int:
    """Bytes of memory that each device offers; 0 where it does not tell.

    On a CPU the machine's free memory (and a container's limit) is shared by the simulated devices. The processes of a
    job take the least of what they find, for they must all compile the same program.
    """
    if jax.process_count() == 1:
        return _local_limit()
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.float32(_local_limit())).min())


def _local_limit() -> int:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return 0
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit of its own
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free // jax.local_device_count()


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _tower_bytes(config: TowerConfig, tokens: int, pairs: int, remat: Remat, dtype: jnp.dtype, *, trains: bool) -> int:
    """What blocks keep of `tokens` tokens, and one block's intermediates; `pairs` of one head."""
    row = tokens * config.width * dtype.itemsize
    hidden = tokens * config.mlp_width * dtype.itemsize
    scores = pairs * config.heads * 4
    if not trains:
        return 6 * row + 2 * hidden + 2 * scores
    kept = (config.layers - 1) * (remat.widths * row + remat.hidden * hidden)
    return kept + 8 * row + 3 * hidden + 3 * scores


def step_bytes(task: Task, *, batch: int, runs: int, mesh_shape: tuple[int, int], remat: str, chunks: int) -> int:
    """Estimated bytes of one device during a training step.

    Args:
      task: bound with any `groups` and `chunks`; those given here count.
      batch: images per step and run, over all devices.
      runs: runs trained side by side.
      mesh_shape: devices along `run` and `data`.
      remat, chunks: the knobs.
    """
    config, kept, dtype = task.clip.config, REMATS[remat], jnp.dtype(task.classifier.dtype)
    shapes = task.shapes
    adaptation = jax.eval_shape(task.method.adapt, shapes)
    runs = -(-runs // mesh_shape[0])
    images = -(-batch // mesh_shape[1])
    geometry = config.vision
    prompts = 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[1]
    length = 1 + geometry.patches + prompts
    trains = adaptation.changes_vision
    total = tree_bytes(task.clip.params) + 4 * runs * tree_bytes(shapes)
    pixels = images * geometry.image_size**2 * 3
    total += runs * pixels * (1 + 2 * dtype.itemsize)
    total += runs * _tower_bytes(geometry, images * length, images * length**2, kept, dtype, trains=trains)
    classes = len(task.tokens.eos)
    if adaptation.changes_text:
        groups = mesh_shape[1] * chunks
        shared, tile = task.text.shared, task.text.texts.shape[-1]
        unique = task.text.texts.shape[0] * task.text.texts.shape[1] * tile
        own = -(-unique // groups)
        part = _tower_bytes(config.text, shared + own, shared**2 + own * (tile + shared), kept, dtype, trains=True)
        total += runs * part
    total += runs * 4 * 4 * classes * (config.projection_width + images)
    return total


def plan_step(
    task: Task,
    *,
    batch: int,
    runs: int,
    mesh: Mesh,
    remat: str = AUTO,
    chunks: int = 0,
    limit: int | None = None,
) -> StepPlan:
    """Chooses what costs the least time among what fits; where nothing does, what needs the least memory.

    Args:
      task, batch, runs: as in `step_bytes`.
      mesh: where to compute.
      remat: a name of `REMATS`, or "auto".
      chunks: parts of the classes; 0 chooses.
      limit: bytes of one device; `None` asks the device.

    Raises:
      ClipbiasError: there is no such way.
    """
    if remat != AUTO and remat not in REMATS:
        raise ClipbiasError(f"remat is {remat!r}; choose {AUTO!r}, {', '.join(map(repr, REMATS))}.")
    if chunks < 0 or chunks > len(task.class_names):
        raise ClipbiasError(
            f"class_chunks is {chunks}; give 1 … {len(task.class_names)}, the number of classes, or 0 to choose."
        )
    limit = device_limit() if limit is None else limit
    shape = (mesh.shape[meshes.RUN], mesh.shape[meshes.DATA])
    needed = flops.step(task, batch)
    adaptation = jax.eval_shape(task.method.adapt, task.shapes)
    config = task.clip.config
    forward_vision = flops.vision(config, batch) if adaptation.changes_vision else 0
    forward_text = flops.text(config, task.tokens, task.text.shared) if adaptation.changes_text else 0
    splits = (chunks,) if chunks else (CHUNKS if adaptation.changes_text else CHUNKS[:1])
    names = (remat,) if remat != AUTO else tuple(REMATS)
    found = []
    for name, parts in itertools.product(names, splits):
        if parts > len(task.class_names):
            continue
        size = step_bytes(task, batch=batch, runs=runs, mesh_shape=shape, remat=name, chunks=parts)
        again = REMATS[name].again * (forward_vision + forward_text) + (parts > 1) * forward_text
        found.append(StepPlan(name, parts, size, limit, int(runs * (needed + again))))
    fitting = [plan for plan in found if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.flop, plan.bytes))
    return min(found, key=lambda plan: plan.bytes)


def fit_task(
    make: Callable[..., Task], *, batch: int, runs: int, mesh: Mesh, remat: str = AUTO, chunks: int = 0
) -> tuple[Task, StepPlan]:
    """The task that `make(remat=…, chunks=…)` binds, with both chosen by `plan_step`; and the plan."""
    task = make()
    plan = plan_step(task, batch=batch, runs=runs, mesh=mesh, remat=remat, chunks=chunks)
    return (make(**plan.options) if plan.options else task), plan


@contextlib.contextmanager
def explain_exhaustion(advice: str) -> Iterator[None]:
    """Turns a device's report that its memory is exhausted into one sentence that ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
            raise
        raise ClipbiasError(f"the device is out of memory; {advice}") from error
