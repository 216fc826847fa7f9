"""Memory of a training step and of an evaluation, and the fastest way to run them that fits the device.

Three settings trade time for memory and give the same numbers: what the backward pass keeps of each block (`remat`), in
how many parts the text tower takes the classes (`class_chunks`), and how many images are taken at a time
(`micro_batch`). Candidates are compiled from the fastest on, until `memory_analysis` of one fits. JAX keeps the
program, so that the first step starts at once.
"""

import contextlib
import dataclasses
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.clip import layers
from clipbias.clip.target import away
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.accumulation import why_whole
from clipbias.training.compute import AUTO
from clipbias.training.programs import class_program, training_program
from clipbias.tuning import Recipe, Task
from clipbias.tuning.feature_method import sampling_of


class Remat(NamedTuple):
    """A policy: what the backward pass keeps, and the share of the forward pass's products that it computes again."""

    keep: Any
    repeated: float


# From the fastest to the smallest.
REMATS = {
    "products": Remat(layers.keep_products, 0.0),
    "half": Remat(layers.keep_half, 1 / 3),
    "tokens": Remat(layers.keep_tokens, 1.0),
}

# Candidates for the parts of the classes and of the images. Each may cost a compilation, so there are few.
CHUNKS = PARTS = (1, 4, 16)
# Cost of another part of the images, as a share of the forward pass's products: more than nothing.
PART_COST = 0.01

# Share of a device's memory that a program may fill. The rest is for fragmentation and for other programs.
USABLE = 0.85

# Bytes of a program that its compiler refuses for lack of memory.
REFUSED = 1 << 62


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How a training step runs, and the memory it needs.

    Attributes:
      remat: a name of `REMATS`.
      chunks: parts in which each device takes its classes.
      parts: parts in which the images of a step are taken.
      bytes: memory of one device, arguments included, as the compiler plans it.
      limit: memory of one device; 0 where the device does not report it.
    """

    remat: str
    chunks: int
    parts: int
    bytes: int = 0
    limit: int = 0

    @property
    def fits(self) -> bool:
        """Whether the device has room for the step."""
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `Task.with_memory`; none for the fastest way."""
        if (self.remat, self.chunks) == (next(iter(REMATS)), 1):
            return {}
        return {"remat": REMATS[self.remat].keep, "class_chunks": self.chunks}

    @property
    def is_fastest(self) -> bool:
        """Whether nothing is computed again, or in parts, to save memory."""
        return not self.options and self.parts == 1

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device ({describe_plan(self)})"


def describe_plan(plan: MemoryPlan) -> str:
    """Remat policy, class chunks and micro-batches in one line."""
    classes = f", classes in {plan.chunks} parts" if plan.chunks > 1 else ""
    images = f", images in {plan.parts} parts" if plan.parts > 1 else ""
    return f"keeping {plan.remat}{classes}{images}{'' if plan.fits else '; it does not fit'}"


def plan_step(
    task: Task,
    recipe: Recipe,
    *,
    rows: int,
    runs: int,
    mesh: Mesh,
    remat: str = AUTO,
    chunks: int | None = None,
    micro_batch: int | None = None,
    limit: int | None = None,
    images: int = 0,
) -> tuple[Task, MemoryPlan]:
    """The fastest way to run a training step that fits the device; where none fits, the smallest.

    Args:
      task: what is trained, with the class shards of the mesh.
      recipe: the optimiser's.
      rows: images per step and run, over all devices.
      runs: runs trained side by side.
      mesh: where to compute.
      remat: a name of `REMATS`, or "auto".
      chunks: parts of the classes; `None` selects.
      micro_batch: images of a run that are taken at a time, over all devices; `None` takes all that fit.
      limit: bytes of one device; `None` asks the device.
      images: the training images of a run, where the method learns something for each.

    Raises:
      ClipbiasError: a setting is out of range.
    """
    limit = device_limit() if limit is None else limit
    parts = _image_parts(task, rows, mesh.shape[meshes.DATA], micro_batch)
    candidates = list[tuple[Task, MemoryPlan]]()
    for plan in _candidates(task, remat, chunks, parts):
        planned = task.with_memory(**plan.options)  # equal tasks share one compiled program
        program = training_program(planned, recipe, rows=rows, runs=runs, mesh=mesh, images=images, parts=plan.parts)
        plan = dataclasses.replace(plan, bytes=needed_bytes(program.lower()), limit=limit)
        if plan.fits:
            return planned, plan
        candidates.append((planned, plan))
    return min(candidates, key=lambda pair: pair[1].bytes)


def _image_parts(task: Task, rows: int, devices: int, micro_batch: int | None) -> tuple[int, ...]:
    """Candidates for the parts of `rows` images on so many devices."""
    why, each = why_whole(task), -(-rows // devices)
    if micro_batch is not None:
        parts = -(-each // max(1, micro_batch // devices))
        if parts == 1 or sampling_of(task.method) is not None:
            return (1,)
        if why is not None:
            raise ClipbiasError(f"micro_batch is {micro_batch}, but {why}; leave it at None or lower batch_size.")
        return (parts,)
    if why is not None or not task.classifier.changes_vision(task.shapes):  # without a backward pass images need little
        return (1,)
    return tuple(n for n in PARTS if n <= each)


def _candidates(task: Task, remat: str, chunks: int | None, parts: tuple[int, ...]) -> list[MemoryPlan]:
    """Plans from the fastest to the slowest. With images in parts, "auto" tries the first and the last remat alone."""
    if remat != AUTO and remat not in REMATS:
        raise ClipbiasError(f"remat is {remat!r}; choose {AUTO!r}, {', '.join(map(repr, REMATS))}.")
    classes = len(task.class_names)
    if chunks is not None and not 1 <= chunks <= classes:
        raise ClipbiasError(f"class_chunks is {chunks}; give 1 … {classes}, the number of classes, or None to select.")
    packed = task.classifier.changes_text(task.shapes) and not task.classifier.drops_text(task.shapes)
    splits = (chunks,) if chunks else tuple(n for n in CHUNKS if n == 1 or (packed and n <= classes))

    def cost(plan: MemoryPlan) -> tuple[float, int]:
        # Parts of the classes cost the text tower's forward pass once more, however many they are.
        return REMATS[plan.remat].repeated + (plan.chunks > 1) + PART_COST * (plan.parts - 1), plan.chunks

    plans = itertools.starmap(MemoryPlan, itertools.product(REMATS if remat == AUTO else (remat,), splits, parts))
    return sorted((one for one in plans if one.parts == parts[0] or remat != AUTO or one.remat != "half"), key=cost)


def fit_evaluation(task: Task, *, runs: int, mesh: Mesh, limit: int | None = None) -> Task:
    """The task whose class features of all runs fit the memory, computed in as few parts as possible.

    Args:
      task: what is evaluated.
      runs: runs evaluated side by side.
      mesh: where to compute.
      limit: bytes of one device; `None` asks the device.
    """
    if not task.classifier.changes_text(task.shapes):
        return task  # the tower ran once, and `Task` limits its memory
    limit = device_limit() if limit is None else limit
    for chunks in (n for n in CHUNKS if n == 1 or n <= len(task.class_names)):
        planned = task.with_memory(class_chunks=chunks)
        if not limit or needed_bytes(class_program(planned, runs=runs, mesh=mesh).lower()) <= USABLE * limit:
            break
    return planned


def needed_bytes(lowered: Any) -> int:
    """Bytes of one device that a lowered function needs, its arguments included. It is compiled, not run."""
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if _is_exhaustion(error):  # some compilers refuse what cannot fit
            return REFUSED
        raise
    if memory is None:  # this compiler does not report it
        return 0
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return int(sum(sizes) - memory.alias_size_in_bytes)


def device_limit() -> int:
    """Bytes of memory that each device offers; 0 where it does not report them.

    On a CPU the simulated devices share the machine's free memory (and a container's limit). Several processes take the
    least of theirs, since they must all compile the same program.
    """
    if (elsewhere := away()) is not None:
        return elsewhere.memory
    return min(hosts.gather(_local_limit()))


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


def format_bytes(count: int) -> str:
    """Such as "1.25 GB", "36 MB" or "512 B"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


@contextlib.contextmanager
def explain_exhaustion(advice: str) -> Iterator[None]:
    """Turns a device's report that its memory is exhausted into one sentence that ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_exhaustion(error):
            raise
        raise ClipbiasError(f"the device is out of memory; {advice}") from error


def _is_exhaustion(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def drop_programs() -> None:
    """Drops every compiled program of this process.

    Each holds some fifty memory maps, of which the kernel allows 65,530, so a long sweep calls this between methods.
    The cache on disk (`training.kept_programs`) brings back programs that are needed again.
    """
    jax.clear_caches()
    gc.collect()  # programs in reference cycles
