"""Memory of a training step and of an evaluation, and the fastest way to run them that fits the device.

Three settings trade time for memory and give the same numbers: what the backward pass keeps of each block (`remat`), in
how many class chunks the text tower takes the classes, and in how many micro-batches a step takes its images.
Candidates are compiled from the fastest on, until `memory_analysis` of one fits. JAX keeps the
program, so that the first step starts at once.
"""

import dataclasses
import itertools
from typing import NamedTuple

from jax.sharding import Mesh

from clipbias.clip import layers
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.accumulation import why_whole
from clipbias.training.compute import AUTO, Compute
from clipbias.training.device_memory import USABLE, device_limit, needed_bytes
from clipbias.training.programs import StepShape, class_program, training_program
from clipbias.tuning import Recipe, Task
from clipbias.tuning.classifier import RematPolicy
from clipbias.tuning.feature_method import sampling_of


class Remat(NamedTuple):
    """A policy: what the backward pass keeps, and the share of the forward pass's products that it computes again."""

    keep: RematPolicy
    repeated: float


# From the fastest to the smallest.
REMATS = {
    "products": Remat(layers.keep_products, 0.0),
    "half": Remat(layers.keep_half, 1 / 3),
    "tokens": Remat(layers.keep_tokens, 1.0),
}

FASTEST = next(iter(REMATS))

# Candidates for the numbers of class chunks and of micro-batches. Each may cost a compilation, so there are few.
COUNTS = (1, 4, 16)
# Cost of another micro-batch, as a share of the forward pass's products: more than nothing.
MICRO_BATCH_COST = 0.01


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How a training step runs, and the memory it needs.

    Attributes:
      remat: a name of `REMATS`.
      class_chunks: a *class chunk* is the part of its classes that a device encodes at a time; it takes so many.
      micro_batches: in which the images of a step are taken (`StepStatic`).
      bytes: memory of one device, arguments included, as the compiler plans it.
      limit: memory of one device; 0 where the device does not report it.
    """

    remat: str
    class_chunks: int
    micro_batches: int
    bytes: int = 0
    limit: int = 0

    @property
    def fits(self) -> bool:
        """Whether the device has room for the step."""
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def is_fastest(self) -> bool:
        """Whether nothing is computed again, or one after another, to save memory."""
        return (self.remat, self.class_chunks, self.micro_batches) == (FASTEST, 1, 1)

    def apply(self, task: Task) -> Task:
        """The task with these settings; as it is for the fastest ones."""
        if (self.remat, self.class_chunks) == (FASTEST, 1):
            return task.with_memory()
        return task.with_memory(remat=REMATS[self.remat].keep, class_chunks=self.class_chunks)

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device ({describe_plan(self)})"


def describe_plan(plan: MemoryPlan) -> str:
    """Remat policy, class chunks and micro-batches in one line."""
    settings = [f"keeping {plan.remat}"]
    if plan.class_chunks > 1:
        settings.append(f"{plan.class_chunks} class chunks")
    if plan.micro_batches > 1:
        settings.append(f"{plan.micro_batches} micro-batches")
    return ", ".join(settings) + ("" if plan.fits else "; it does not fit")


def plan_step(
    task: Task, recipe: Recipe, size: StepShape, compute: Compute | None = None, *, limit: int | None = None
) -> MemoryPlan:
    """The fastest way to run a training step that fits the device; where none fits, the smallest.

    Args:
      task: what is trained, with the class shards of the mesh.
      recipe: the optimiser's.
      size: of the step.
      compute: memory settings; `None` selects all.
      limit: bytes of one device; `None` asks the device.

    Raises:
      ClipbiasError: a setting is out of range.
    """
    limit = device_limit() if limit is None else limit
    candidates = []
    for plan in _candidates(task, size, compute or Compute()):
        program = training_program(plan.apply(task), recipe, size, micro_batches=plan.micro_batches)
        plan = dataclasses.replace(plan, bytes=needed_bytes(program.lower()), limit=limit)
        if plan.fits:
            return plan
        candidates.append(plan)
    return min(candidates, key=lambda plan: plan.bytes)


def _candidates(task: Task, size: StepShape, compute: Compute) -> list[MemoryPlan]:
    """Plans from the fastest to the slowest. With micro-batches, "auto" tries the first and the last remat alone."""
    remats = _remats(compute.remat)
    class_chunks = _class_chunks(task, compute.class_chunks)
    micro_batches = _micro_batches(task, size, compute.micro_batch)

    def cost(plan: MemoryPlan) -> tuple[float, int]:
        # Class chunks cost the text tower's forward pass once more, however many they are.
        repeated = REMATS[plan.remat].repeated + (plan.class_chunks > 1)
        return repeated + MICRO_BATCH_COST * (plan.micro_batches - 1), plan.class_chunks

    plans = [MemoryPlan(*settings) for settings in itertools.product(remats, class_chunks, micro_batches)]
    if compute.remat == AUTO:
        plans = [plan for plan in plans if plan.micro_batches == micro_batches[0] or plan.remat != "half"]
    return sorted(plans, key=cost)


def _remats(remat: str) -> tuple[str, ...]:
    if remat == AUTO:
        return tuple(REMATS)
    if remat not in REMATS:
        raise ClipbiasError(f"remat is {remat!r}; choose {AUTO!r}, {', '.join(map(repr, REMATS))}.")
    return (remat,)


def _class_chunks(task: Task, count: int | None) -> tuple[int, ...]:
    classes = len(task.class_names)
    if count is not None:
        if not 1 <= count <= classes:
            raise ClipbiasError(
                f"class_chunks is {count}; give 1 … {classes}, the number of classes, or None to select."
            )
        return (count,)
    packed = task.classifier.changes_text(task.shapes) and not task.classifier.drops_text(task.shapes)
    return tuple(n for n in COUNTS if n == 1 or (packed and n <= classes))


def _micro_batches(task: Task, size: StepShape, micro_batch: int | None) -> tuple[int, ...]:
    devices = size.mesh.shape[meshes.DATA]
    why = why_whole(task)
    each = -(-size.rows // devices)
    if micro_batch is not None:
        count = -(-each // max(1, micro_batch // devices))
        if count == 1 or sampling_of(task.method) is not None:
            return (1,)
        if why is not None:
            raise ClipbiasError(f"micro_batch is {micro_batch}, but {why}; leave it at None or lower batch_size.")
        return (count,)
    if why is not None or not task.classifier.changes_vision(task.shapes):  # without a backward pass images need little
        return (1,)
    return tuple(n for n in COUNTS if n <= each)


def fit_evaluation(task: Task, *, runs: int, mesh: Mesh, limit: int | None = None) -> Task:
    """The task whose class features of all runs fit the memory, computed in as few class chunks as possible.

    Args:
      task: what is evaluated.
      runs: runs evaluated side by side.
      mesh: where to compute.
      limit: bytes of one device; `None` asks the device.
    """
    if not task.classifier.changes_text(task.shapes):
        return task  # the tower ran once, and `Task` limits its memory
    limit = device_limit() if limit is None else limit
    planned = task
    for count in COUNTS:
        if count > 1 and count > len(task.class_names):
            break
        planned = task.with_memory(class_chunks=count)
        if not limit or needed_bytes(class_program(planned, runs=runs, mesh=mesh).lower()) <= USABLE * limit:
            break
    return planned
