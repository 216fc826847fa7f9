"""What a run would do and need, before it does: shapes, parameters, memory and time."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipbias.data.pipeline import steps_per_epoch
from clipbias.training import flops
from clipbias.training.memory import StepPlan
from clipbias.training.settings import Recipe
from clipbias.tuning import Task, parameter_count

# The share of a large matrix product's rate that steps reach: on CPUs as measured (docs/performance.md), elsewhere
# what well-fed steps of this kind usually reach.
SHARES = {"cpu": 0.65}
OTHER_SHARE = 0.4

_SIDE = {"cpu": 1024}
_OTHER_SIDE = 8192


def device_rate(dtype: str = "float32") -> float:
    """Multiplications and additions per second of one device in a large matrix product, the best of five."""
    side = _SIDE.get(jax.default_backend(), _OTHER_SIDE)
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest" if dtype == "float32" else None))
    multiply(matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        multiply(matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return flops.matmul((side, side, side)) / min(seconds)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One program: runs that train side by side, and the evaluation of each.

    Attributes:
      title: what is trained.
      tasks: the task of each run.
      recipe: optimiser and schedule.
      step: what a step needs.
      images: training images of a run.
      test_images: images that each run is evaluated on.
      mesh: the devices.
    """

    title: str
    tasks: Sequence[Task]
    recipe: Recipe
    step: StepPlan
    images: int
    test_images: int
    mesh: Mesh

    @property
    def steps(self) -> int:
        """Steps in all epochs."""
        return self.recipe.epochs * steps_per_epoch(self.images, self.recipe.batch_size)

    @property
    def flop(self) -> int:
        """Products of training and evaluation, of all runs."""
        batch = min(self.recipe.batch_size, self.images)
        training = self.steps * self.step.flop * batch // self.recipe.batch_size
        config = self.tasks[0].clip.config
        changes = self.tasks[0].classifier.changes_vision(self.tasks[0].shapes)
        passes = len(self.tasks) if changes else 1  # features that no learnable changes are computed once
        return training + passes * flops.vision(config, self.test_images)

    def seconds(self, rate: float) -> float:
        """Estimated seconds on this mesh, whose devices multiply at `rate`; compiling and reading are not counted."""
        devices = 1 if jax.default_backend() == "cpu" else self.mesh.devices.size
        return self.flop / (rate * devices * SHARES.get(jax.default_backend(), OTHER_SHARE))

    def describe(self, rate: float) -> str:
        """Several lines for people."""
        task = self.tasks[0]
        counts = parameter_count(task.shapes)
        parts = ", ".join(f"{counts[part]:,} {part}" for part in ("vision", "text", "shared") if counts[part])
        shapes = [
            f"    {'/'.join(str(getattr(key, 'key', key)) for key in path)} {list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(task.shapes)
        ]
        size, batch = task.clip.config.vision.image_size, min(self.recipe.batch_size, self.images)
        runs = f"{len(self.tasks)} runs side by side, " if len(self.tasks) > 1 else ""
        devices = f"{self.mesh.devices.size} devices" if self.mesh.devices.size > 1 else "one device"
        classes = f"{len(task.class_names)} classes, {self.test_images} test images"
        timed = f"  time: about {self.seconds(rate):,.1f} s on {devices} of {rate / 1e9:,.0f} GFLOP/s in products"
        if not self.step.flop:
            return "\n".join([self.title, f"  nothing to train, {classes}", timed])
        return "\n".join(
            [
                self.title,
                f"  {runs}{self.images} training images, {self.steps} steps, {classes}",
                f"  parameters per run: {counts['total']:,} ({parts})",
                *shapes,
                f"  a step: images [{len(self.tasks)}, {batch}, {size}, {size}, 3], text tokens "
                f"{list(task.text.ids.shape)}, {self.step.flop / 1e9:,.1f} GFLOP",
                f"  memory: {self.step}",
                timed,
            ]
        )
