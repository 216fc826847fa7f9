"""Memory of a training step and of an evaluation, and the fastest way to run them that fits the device.

Two settings trade time for memory and give the same numbers: what the backward pass keeps of each block (`remat`), and
in how many class chunks the text tower takes the classes. Candidates are compiled from the fastest on, until
`memory_analysis` of one fits. JAX keeps the program, so that the first step starts at once.
"""

import dataclasses
import itertools
from typing import NamedTuple

from jax.sharding import Mesh

from clipbias.clip import layers
from clipbias.errors import ClipbiasError
from clipbias.training.compute import AUTO, Compute
from clipbias.training.device_memory import USABLE, device_limit, needed_bytes
from clipbias.training.programs import StepShape, class_program, training_program
from clipbias.tuning import Recipe, Task
from clipbias.tuning.classifier import RematPolicy


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

# Candidates for the number of class chunks. Each may cost a compilation, so there are few.
COUNTS = (1, 4, 16)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How a training step runs, and the memory it needs.

    Attributes:
      remat: a name of `REMATS`.
      class_chunks: a *class chunk* is the part of its classes that a device encodes at a time; it takes so many.
      bytes: memory of one device, arguments included, as the compiler plans it.
      limit: memory of one device; 0 where the device does not report it.
    """

    remat: str
    class_chunks: int
    bytes: int = 0
    limit: int = 0

    @property
    def fits(self) -> bool:
        """Whether the device has room for the step."""
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def is_fastest(self) -> bool:
        """Whether nothing is computed again, or one after another, to save memory."""
        return (self.remat, self.class_chunks) == (FASTEST, 1)

    def apply(self, task: Task) -> Task:
        """The task with these settings; as it is for the fastest ones."""
        if self.is_fastest:
            return task.with_memory()
        return task.with_memory(remat=REMATS[self.remat].keep, class_chunks=self.class_chunks)

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device ({describe_plan(self)})"


def describe_plan(plan: MemoryPlan) -> str:
    """Remat policy and class chunks in one line."""
    settings = [f"keeping {plan.remat}"]
    if plan.class_chunks > 1:
        settings.append(f"{plan.class_chunks} class chunks")
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
    for plan in _candidates(task, compute or Compute()):
        program = training_program(plan.apply(task), recipe, size)
        plan = dataclasses.replace(plan, bytes=needed_bytes(program.lower()), limit=limit)
        if plan.fits:
            return plan
        candidates.append(plan)
    return min(candidates, key=lambda plan: plan.bytes)


def _candidates(task: Task, compute: Compute) -> list[MemoryPlan]:
    """Plans from the fastest to the slowest."""

    def cost(plan: MemoryPlan) -> tuple[float, int]:
        # Class chunks cost the text tower's forward pass once more, however many they are.
        return REMATS[plan.remat].repeated + (plan.class_chunks > 1), plan.class_chunks

    settings = itertools.product(_remats(compute.remat), _class_chunks(task, compute.class_chunks))
    return sorted(itertools.starmap(MemoryPlan, settings), key=cost)


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
