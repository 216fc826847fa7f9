"""Memory of a training step and of an evaluation, and their fastest settings that fit the device.

Two settings trade time for memory and change no number: the remat policy of the blocks, and the number of class chunks
in which the text tower takes the classes. Candidates are compiled from the fastest on, until one fits.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import stages
from jax.sharding import Mesh

from clipbias.clip import layers
from clipbias.errors import ClipbiasError
from clipbias.training import forward, placement
from clipbias.training.batches import FeatureStatic, frozen_features
from clipbias.training.device import AUTO_REMAT, USABLE, Compute, device_limit, needed_bytes
from clipbias.training.forward import EvalInputs, EvalStatic
from clipbias.training.step import TEACHER_LOGITS, StepScalars, StepStatic, init_state, place_inputs, train_step
from clipbias.tuning import Recipe, Sampling, Task
from clipbias.tuning.method import crops_of, mixes_crops, sampling_of
from clipbias.tuning.task import RematPolicy


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of training or evaluation, with shapes, types and shardings in place of arrays."""

    name: str
    function: stages.Wrapped
    arguments: Sequence[Any]

    def lower(self) -> stages.Lowered:
        # For the devices of its shardings, there or not.
        return self.function.lower(*self.arguments)


@dataclasses.dataclass(frozen=True)
class StepShape:
    """Sizes of a training step: `batch` of `images` of each run over all devices, and `runs` with their padding."""

    batch: int
    runs: int
    mesh: Mesh
    images: int = 0
    taught: bool = False


def training_program(task: Task, recipe: Recipe, size: StepShape) -> Program:
    shape = jax.ShapeDtypeStruct
    config = task.clip.config
    method = task.method
    runs = size.runs
    mesh = size.mesh
    sampling = sampling_of(method)
    # A method on features may learn an array of all training images, whose axis has length 0 in `task.shapes`.
    each = 0 if sampling is None else size.images
    learnables = jax.tree.map(
        lambda leaf: shape((runs, *(axis or each for axis in leaf.shape)), leaf.dtype), task.shapes
    )
    # Shapes alone: planning must not fill the memory that it measures.
    state = jax.eval_shape(lambda start: init_state(method, recipe, start), learnables)
    rows = placement.rows(mesh, size.batch)
    side = config.vision.image_size
    pixels = shape((runs, rows, side, side, 3), np.uint8)
    if sampling is not None:
        width = config.projection_width if sampling.projected else config.vision.width
        pixels = shape((runs, rows, width), np.float32)
    batch = {"images": pixels, "labels": shape((runs, rows), np.int32), "mask": shape((runs, rows), np.bool_)}
    if size.taught:
        batch[TEACHER_LOGITS] = shape((runs, rows, len(task.class_names)), np.float32)
    static = StepStatic.of(task, recipe, mesh)
    params = placement.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    scalars = StepScalars(
        learning_rate=placement.abstract(mesh, (runs,), np.float32, placement.RUN),
        weight=None if state.average is None else placement.abstract(mesh, (), np.float32),
    )
    arguments = (
        static,
        place_inputs(mesh, task, params, learnables, range(runs)),
        placement.device_put(mesh, state, placement.RUN),
        placement.device_put(mesh, batch, placement.RUN, placement.DATA),
        scalars,
    )
    return Program("train_step", train_step, arguments)


def class_program(task: Task, *, runs: int, mesh: Mesh) -> Program:
    """Returns the program that holds the class features of all runs; for one image where prompts depend on it."""
    static, inputs = _evaluation(task, runs, mesh)
    if not task.method.conditional:
        return Program("text_features", forward.text_features, (static, inputs))
    _, features, mask = _images(task, 1, runs, mesh)
    return Program("logits", forward.logits, (static, inputs, features, mask))


def _images(task: Task, batch: int, runs: int, mesh: Mesh) -> tuple[Program, Any, Any]:
    # The program of a batch of images, with the features and the mask that the head gets from it.
    size = task.clip.config.vision.image_size
    crops = crops_of(task.method)
    batch = forward.images_per_step(batch, crops, mesh)
    views = (1 + crops,) if crops else ()
    kind = np.float32 if mixes_crops(task.method) else np.uint8
    pixels = placement.abstract(mesh, (batch, *views, size, size, 3), kind, placement.DATA)
    # Runs share the features of a tower that none of them changes.
    static, inputs = _evaluation(task, runs if task.classifier.changes_vision(task.shapes) else 1, mesh)
    arguments = (static, inputs.params, inputs.learnables, pixels)
    features = jax.eval_shape(functools.partial(forward.image_features, static), *arguments[1:])
    features = placement.device_put(mesh, features, placement.RUN, placement.DATA)
    mask = placement.abstract(mesh, (batch,), np.bool_, placement.DATA)
    return Program("image_features", forward.image_features, arguments), features, mask


def evaluation_programs(task: Task, *, batch: int, runs: int, mesh: Mesh) -> list[Program]:
    """Returns the programs of an evaluation: of each batch, and of all texts where learnables change them."""
    # Shapes and shardings must be those of `evaluator`: JAX finds the compiled program by them.
    of_images, features, mask = _images(task, batch, runs, mesh)
    programs = [of_images]
    static, inputs = _evaluation(task, runs, mesh)
    if not task.method.conditional:
        class_text: Any = inputs.text
        if task.classifier.changes_text(task.shapes):
            programs.append(class_program(task, runs=runs, mesh=mesh))
            shape = runs, len(task.texts), task.clip.config.projection_width
            class_text = placement.abstract(mesh, shape, np.float32, placement.RUN)
        else:
            class_text = placement.abstract(mesh, (1, *class_text.shape), class_text.dtype)
        inputs = dataclasses.replace(inputs, text=class_text)
    labels = placement.abstract(mesh, mask.shape, np.int32, placement.DATA)
    temperatures = placement.abstract(mesh, (runs,), np.float32)
    return [*programs, Program("outcomes", forward.outcomes, (static, inputs, features, mask, labels, temperatures))]


def features_program(task: Task, sampling: Sampling, *, batch: int, mesh: Mesh) -> Program:
    clip = task.clip
    size = clip.config.vision.image_size
    dtype = task.classifier.dtype
    images = placement.abstract(mesh, (batch, size, size, 3), np.uint8, placement.DATA)
    params = placement.place_weights(mesh, clip.params, dtype, shapes=True)
    static = FeatureStatic(clip.config, clip.preprocessing, dtype, sampling.projected)
    return Program("frozen_features", frozen_features, (static, params, images))


def _evaluation(task: Task, runs: int, mesh: Mesh) -> tuple[EvalStatic, EvalInputs]:
    learnables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), task.shapes)
    params = placement.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    return forward.make_evaluation(task, params, learnables, runs=runs, mesh=mesh)


# Remat policies from the fastest to the smallest, and the share of the forward pass's products that the backward pass
# repeats under each.
REMATS: dict[str, tuple[RematPolicy, float]] = {
    "products": (layers.keep_products, 0.0),
    "half": (layers.keep_half, 1 / 3),
    "tokens": (layers.keep_tokens, 1.0),
}

FASTEST = next(iter(REMATS))

# Candidates for the number of class chunks. Each may cost a compilation, so there are few.
COUNTS = (1, 4, 16)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Memory settings of a training step, and the memory of one device as the compiler plans it, arguments included.

    A *class chunk* is the part of its classes that a device encodes at a time. A `limit` of 0 is unknown.
    """

    remat: str
    class_chunks: int
    bytes: int = 0
    limit: int = 0

    @property
    def fits(self) -> bool:
        return not self.limit or self.bytes <= USABLE * self.limit

    @property
    def is_fastest(self) -> bool:
        return (self.remat, self.class_chunks) == (FASTEST, 1)

    def apply(self, task: Task) -> Task:
        if self.is_fastest:
            # Undoes an earlier plan of the task, too.
            return task.with_memory()
        keep, _ = REMATS[self.remat]
        return task.with_memory(remat=keep, class_chunks=self.class_chunks)

    def __str__(self) -> str:
        limit = f" of {self.limit / 1e9:.3g}" if self.limit else ""
        return f"about {self.bytes / 1e9:.2g}{limit} GB per device ({describe_plan(self)})"


def describe_plan(plan: MemoryPlan) -> str:
    settings = [f"keeping {plan.remat}"]
    if plan.class_chunks > 1:
        settings.append(f"{plan.class_chunks} class chunks")
    return ", ".join(settings) + ("" if plan.fits else "; it does not fit")


def plan_step(task: Task, recipe: Recipe, size: StepShape, compute: Compute | None = None) -> MemoryPlan:
    """Returns the fastest settings of a step that fit the device; the smallest where none fits."""
    limit = device_limit()
    compute = compute or Compute()
    if compute.remat != AUTO_REMAT and compute.remat not in REMATS:
        raise ClipbiasError(f"remat is {compute.remat!r}; choose {AUTO_REMAT!r}, {', '.join(map(repr, REMATS))}.")
    classes = len(task.class_names)
    chunks = compute.class_chunks
    if chunks is not None and not 1 <= chunks <= classes:
        raise ClipbiasError(f"class_chunks is {chunks}; give 1 … {classes}, the number of classes, or None to select.")
    # Only packed texts come in chunks: features are no work, and texts with dropout are not packed.
    packed = task.classifier.changes_text(task.shapes) and not task.classifier.drops_text(task.shapes)
    counts = [n for n in COUNTS if n == 1 or (packed and n <= classes)]

    def cost(settings: tuple[str, int]) -> tuple[float, int]:
        # Chunks repeat the text tower's forward pass in the backward pass, whatever their number; fewer come first.
        remat, count = settings
        return REMATS[remat][1] + (count > 1), count

    remats = REMATS if compute.remat == AUTO_REMAT else (compute.remat,)
    candidates = []
    for settings in sorted(itertools.product(remats, counts if chunks is None else (chunks,)), key=cost):
        plan = MemoryPlan(*settings)
        program = training_program(plan.apply(task), recipe, size)
        plan = dataclasses.replace(plan, bytes=needed_bytes(program.lower()), limit=limit)
        # JAX keeps its program, so that the first step starts at once.
        if plan.fits:
            return plan
        candidates.append(plan)
    return min(candidates, key=lambda plan: plan.bytes)


def fit_evaluation(task: Task, *, runs: int, mesh: Mesh) -> Task:
    """Returns the task with the fewest class chunks whose text features of all runs fit the device."""
    if not task.classifier.changes_text(task.shapes):
        return task  # the tower ran once, and `Task` limits its memory
    # All runs are evaluated at once, and their text features may need more memory than a step of training.
    limit = device_limit()
    planned = task
    for count in COUNTS:
        if count > 1 and count > len(task.class_names):
            break
        planned = task.with_memory(class_chunks=count)
        if not limit or needed_bytes(class_program(planned, runs=runs, mesh=mesh).lower()) <= USABLE * limit:
            break
    return planned
