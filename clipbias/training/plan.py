"""What a program needs of each device, as its compiler says, and how to make it fit.

Three settings trade time for memory and give the same numbers: what the backward pass keeps of each block (`remat`), in
how many parts the text tower takes the classes (`class_chunks`), and how many images are taken at a time
(`micro_batch`). A step is compiled the fastest way first and the next way only where the compiler's own account does
not fit the device. JAX keeps what was compiled, so that the first step starts at once with the very program that was
planned.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from clipbias.checks import check_choice
from clipbias.clip import layers
from clipbias.clip.precision import PRECISIONS
from clipbias.clip.target import away, target
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training import processes
from clipbias.training.accumulation import why_whole
from clipbias.training.settings import AUTO
from clipbias.training.step import init_state, place_given, train_step
from clipbias.tuning import Task
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.recipe import Recipe

# What the backward pass keeps of each block, from the fastest to the smallest; and the share of the forward pass's
# products that it computes again.
REMATS = {
    "products": (layers.keep_products, 0.0),
    "half": (layers.keep_half, 1 / 3),
    "tokens": (layers.keep_tokens, 1.0),
}

# Parts that are tried where `class_chunks` is not given; each may cost a compilation, so there are few.
CHUNKS = (1, 4, 16)

# Parts that the images of a step are taken in where `micro_batch` is not given.
PARTS = (1, 4, 16)
# What a part costs beside what it computes, as a share of the forward pass's products: more than nothing.
PART_COST = 0.01

# Share of a device's memory that a program may fill; the rest is for fragmentation and for other programs.
USABLE = 0.85

# Share of a large matrix product's rate that steps reach: on CPUs as measured (docs/performance.md), elsewhere what
# well-fed steps of this kind usually reach.
SHARES, OTHER_SHARE = {"cpu": 0.65}, 0.4


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """How a training step runs and what it needs.

    Attributes:
      remat: a name of `REMATS`.
      chunks: parts in which each device takes its classes.
      parts: parts in which the images of a step are taken.
      bytes: memory of one device, arguments included, as the compiler plans it.
      limit: memory of one device; 0 where the device does not tell.
    """

    remat: str
    chunks: int
    parts: int
    bytes: int
    limit: int

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Task` that make it so; none where blocks and classes are taken the fastest way."""
        if (self.remat, self.chunks) == (next(iter(REMATS)), 1):
            return {}
        return {"remat": REMATS[self.remat][0], "chunks": self.chunks}

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        classes = f", classes in {self.chunks} parts" if self.chunks > 1 else ""
        images = f", images in {self.parts} parts" if self.parts > 1 else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device (keeping {self.remat}{classes}{images})"

    @property
    def is_fastest(self) -> bool:
        """Whether nothing is computed again, or in parts, to save memory."""
        return not self.options and self.parts == 1


def plan_step(
    make: Callable[..., Task],
    recipe: Recipe,
    *,
    rows: int,
    runs: int,
    mesh: Mesh,
    remat: str = AUTO,
    chunks: int = 0,
    micro_batch: int = 0,
    limit: int | None = None,
    images: int = 0,
) -> tuple[Task, StepPlan]:
    """The fastest way to run a training step that fits the device; where none does, the one that needs the least.

    Args:
      make: binds the task, given `remat` and `chunks`.
      recipe: the optimiser's.
      rows: images per step and run, over all devices.
      runs: runs trained side by side.
      mesh: where to compute.
      remat: a name of `REMATS`, or "auto".
      chunks: parts of the classes; 0 chooses.
      micro_batch: images of a run that are taken at a time, over all devices; 0 chooses, all of them where they fit.
      limit: bytes of one device; `None` asks the device.
      images: the training images of a run, where the method learns something for each.

    Raises:
      ClipbiasError: there is no such way.
    """
    task = make()
    limit = device_limit() if limit is None else limit
    found = []
    for name, own, parts in _ways(task, remat, chunks, _image_parts(task, rows, mesh.shape[meshes.DATA], micro_batch)):
        # Bound again only where it must be: equal tasks share one compiled program.
        options = StepPlan(name, own, parts, 0, limit).options
        task = make(**options) if options else make()
        arguments = step_arguments(task, recipe, rows=rows, runs=runs, mesh=mesh, images=images)
        plan = StepPlan(name, own, parts, needed_bytes(train_step, *arguments, parts=parts), limit)
        if plan.fits:
            return task, plan
        found.append((plan.bytes, task, plan))
    _, task, plan = min(found, key=lambda one: one[0])
    return task, plan


def _image_parts(task: Task, rows: int, devices: int, micro_batch: int) -> tuple[int, ...]:
    """In how many parts the images of a step may be taken, so many `rows` on so many devices."""
    why, each = why_whole(task), -(-rows // devices)
    if micro_batch:
        parts = -(-each // max(1, micro_batch // devices))
        if parts == 1 or sampling_of(task.method) is not None:
            return (1,)
        if why is not None:
            raise ClipbiasError(f"micro_batch is {micro_batch}, but {why}; leave it at 0 or lower batch_size.")
        return (parts,)
    if why is not None or not task.classifier.changes_vision(task.shapes):  # without a backward pass images need little
        return (1,)
    return tuple(n for n in PARTS if n <= each)


def _ways(task: Task, remat: str, chunks: int, parts: Sequence[int]) -> list[tuple[str, int, int]]:
    """`remat`, `chunks` and `parts` from the fastest to the slowest.

    Where images come in parts and nothing is given, blocks keep all that they may or the least.
    """
    if remat != AUTO and remat not in REMATS:
        raise ClipbiasError(f"remat is {remat!r}; choose {AUTO!r}, {', '.join(map(repr, REMATS))}.")
    classes = len(task.class_names)
    if chunks < 0 or chunks > classes:
        raise ClipbiasError(f"class_chunks is {chunks}; give 1 … {classes}, the number of classes, or 0 to choose.")
    packed = task.classifier.changes_text(task.shapes) and not task.classifier.drops_text(task.shapes)
    splits = (chunks,) if chunks else tuple(n for n in CHUNKS if n == 1 or (packed and n <= classes))
    names = tuple(REMATS) if remat == AUTO else (remat,)

    def cost(way: tuple[str, int, int]) -> tuple[float, int]:
        # Parts of the classes cost the text tower's forward pass once more, however many they are.
        return REMATS[way[0]][1] + (way[1] > 1) + PART_COST * (way[2] - 1), way[1]

    ways = itertools.product(names, splits, parts)
    return sorted((way for way in ways if way[2] == parts[0] or len(names) == 1 or way[0] != "half"), key=cost)


def step_arguments(task: Task, recipe: Recipe, *, rows: int, runs: int, mesh: Mesh, images: int = 0) -> tuple[Any, ...]:
    """Shapes, types and shardings of what `train_step` is called with; `images` are the training images of a run."""
    shape, config, method = jax.ShapeDtypeStruct, task.clip.config, task.method
    learnables = jax.tree.map(
        lambda leaf: shape((runs, *(axis or images for axis in leaf.shape)), leaf.dtype), task.shapes
    )
    state = jax.eval_shape(lambda start: init_state(method, recipe, start), learnables)
    rows += -rows % mesh.shape[meshes.DATA]
    size, sampling = config.vision.image_size, sampling_of(method)
    pixels: Any = shape((runs, rows, size, size, 3), np.uint8)
    if sampling is not None:
        width = config.projection_width if sampling.projected else config.vision.width
        pixels = shape((runs, rows, width), np.float32)
    batch = {
        "images": pixels,
        "labels": shape((runs, rows), np.int32),
        "mask": shape((runs, rows), np.bool_),
    }
    weight = None if state.average is None else meshes.replicate(mesh, shape((), np.float32))
    return (
        *(task.classifier, task.clip.preprocessing, recipe),
        meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True),
        place_given(mesh, task, None, learnables, range(runs)),
        meshes.place(mesh, state, meshes.RUN),
        meshes.place(mesh, batch, meshes.RUN, meshes.DATA),
        meshes.place(mesh, shape((runs,), np.float32), meshes.RUN),
        weight,
        mesh,
    )


def needed_bytes(function: Any, *arguments: Any, **options: Any) -> int:
    """Bytes of one device that a jitted function needs, its arguments included. It is compiled, not run."""
    try:
        account = function.lower(*arguments, **options).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if _is_exhaustion(error):  # some compilers refuse what cannot fit
            return np.iinfo(np.int64).max
        raise
    if account is None:  # this compiler does not tell
        return 0
    sizes = account.argument_size_in_bytes, account.output_size_in_bytes, account.temp_size_in_bytes
    return int(sum(sizes) - account.alias_size_in_bytes)


def device_limit() -> int:
    """Bytes of memory that each device offers; 0 where it does not tell.

    On a CPU the simulated devices share the machine's free memory (and a container's limit). The processes of a job
    take the least that any of them finds, for they must all compile the same program.
    """
    if (elsewhere := away()) is not None:
        return elsewhere.memory
    return min(processes.gather(_local_limit()))


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


def flop(function: Any, *arguments: Any, **options: Any) -> int:
    """Multiplications and additions in the matrix products of a jitted function, on all devices together.

    They are counted in what JAX traces, for the compiler's own count (`cost_analysis`) takes the body of a loop once,
    and the layers are a loop.
    """
    return _products(function.trace(*arguments, **options).jaxpr.jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted = options["dimension_numbers"][0][0]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            terms = math.prod(kernel) // kernel[options["dimension_numbers"].rhs_spec[0]]
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        times = options["length"] if name == "scan" else 1
        for value in options.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)  # closed ones hold an open one
                if hasattr(inner, "eqns"):
                    total += times * _products(inner)
    return total


def device_rate(dtype: str = "float32") -> float:
    """Multiplications and additions per second of one device in a large matrix product, the best of five.

    `dtype` is a compute type by name. Of a device that is not there it is what its maker states. Raises `ClipbiasError`
    where that has no such products.
    """
    if (elsewhere := away()) is not None:
        check_choice("dtype", dtype, tuple(elsewhere.rates))
        return elsewhere.rates[dtype]
    multiply, count = square_product(dtype, 1024)
    multiply().block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        multiply().block_until_ready()
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)


def square_product(dtype: str, side: int) -> tuple[Callable[[], jax.Array], int]:
    """A product of two square matrices, as a compute type forms it, and its multiplications and additions.

    Args:
      dtype: a compute type by name; in "bfloat16" both matrices are of half precision.
      side: rows on a CPU. An accelerator, which so small ones would not fill, gets 8192.
    """
    side = side if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), "bfloat16" if dtype == "bfloat16" else "float32")
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISIONS[dtype]))
    return lambda: multiply(matrix), 2 * side**3


def estimated_seconds(count: int, rate: float, mesh: Mesh) -> float:
    """Seconds that so many multiplications and additions take on a mesh whose devices do `rate` of them a second."""
    platform = target().platform
    devices = 1 if platform == "cpu" else mesh.devices.size  # simulated devices share the cores
    return count / (rate * devices * SHARES.get(platform, OTHER_SHARE))


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
