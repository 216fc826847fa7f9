"""A tuned model as a teacher: a student learns its logits of the training images in place of labels."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from clipbias.data.held_out import without_labels
from clipbias.data.images import Images
from clipbias.data.pipeline import Batch
from clipbias.data.transforms import Resizing
from clipbias.errors import ClipbiasError
from clipbias.training import placement
from clipbias.training.batches import RunBatches
from clipbias.training.context import SweepContext
from clipbias.training.evaluator import Evaluator
from clipbias.training.forward import EvalInputs, EvalStatic, encode_texts, make_evaluation
from clipbias.training.memory import fit_evaluation
from clipbias.training.step import TEACHER_LOGITS, over_runs
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import FeatureMethod, Method, TestTimeMethod, stack_runs
from clipbias.tuning.tuned import Tuned


def check_student(student: Task, teacher: Tuned) -> None:
    if student.class_names != teacher.task.class_names:
        raise ClipbiasError(
            f"the teacher has {len(teacher.task.class_names)} classes and the student {len(student.class_names)}, or "
            "in another order; bind both to the same classes."
        )
    if why := why_no_student(student.method):
        raise ClipbiasError(f"{student.method_name!r} cannot learn from a teacher: {why}; choose another method.")


def why_no_student(method: Method) -> str:
    """Returns a clause on why a method cannot learn from a teacher; "" if it can."""
    if isinstance(method, FeatureMethod):
        return "it is made of features and labels of training images"
    if isinstance(method, TestTimeMethod):
        return "it learns from each test image"
    return "" if method.trains else "it has no trainable parameters"


def split_logits(model: Tuned, images: Images, context: SweepContext) -> tuple[np.ndarray, np.ndarray]:
    """Computes a tuned model's logits of images as they are evaluated, once for each list of images.

    Returns float32 `[n, C]`, zeros for unreadable images, and which images are readable, bool `[n]`.
    """
    # No label is read: the same images with other labels have the same logits.
    key = "logits", model.identity, without_labels(images.split).digest

    def compute() -> tuple[np.ndarray, np.ndarray]:
        evaluator = Evaluator(images, context.reading, batch_size=context.compute.eval_batch_size)
        scores, read = evaluator.logits(*_evaluation(model, context))
        return np.where(read[:, None], scores[0], 0), read

    return context.keep(key, compute)


class TaughtBatches(RunBatches):
    """Batches with the teacher's logits `[R, B, C]` of each image.

    Without augmentation they are computed once for each image, else for the augmented images of each batch. A teacher
    of another resolution sees the same crops at its own resolution.
    """

    def __init__(
        self,
        teacher: Tuned,
        run_images: Sequence[Images],
        seeds: Sequence[int],
        recipe: Recipe,
        context: SweepContext,
        *,
        resizing: Resizing,
        start_step: int,
    ) -> None:
        """Raises `ClipbiasError` where images are augmented, and the teacher needs crops of each image."""
        mesh = context.mesh
        # A student reads no label: each image's number in the list takes its place, by which a batch finds its logits.
        numbered = {
            id(of_run): Images(dataclasses.replace(of_run.split, labels=np.arange(len(of_run))), of_run.cache)
            for of_run in run_images
        }
        run_images = [numbered[id(of_run)] for of_run in run_images]
        reading = context.reading
        super().__init__(run_images, seeds, recipe, reading, resizing=resizing, start_step=start_step)
        self._table: jax.Array | None = None
        self._evaluation: tuple[EvalStatic, EvalInputs] | None = None
        self._of_teacher: RunBatches | None = None
        if not recipe.augment:
            logits = {id(of_run): split_logits(teacher, of_run, context)[0] for of_run in numbered.values()}
            stacked = np.stack([logits[id(of_run)] for of_run in run_images])
            # On the mesh once: a batch sends numbers of images, and no logits of a thousand classes.
            self._table = placement.RunAxis(mesh, len(run_images)).place(stacked)
        # Crops differ in every step, so their logits cannot be known before.
        elif isinstance(teacher.task.method, TestTimeMethod):
            raise ClipbiasError(
                f"{teacher.task.method_name!r} learns from crops of each test image, so it teaches without "
                "augmentation: set the recipe's augment to False."
            )
        else:
            static, inputs = _evaluation(teacher, context)
            self._evaluation = static, encode_texts(static, inputs)
            if (own := teacher.task.clip.preprocessing.resizing) != resizing:
                self._of_teacher = RunBatches(run_images, seeds, recipe, reading, resizing=own, start_step=start_step)

    def __next__(self) -> Batch:
        batch: Any = super().__next__()
        if self._table is not None:
            logits = _look_up(self._mesh, self._table, batch["labels"])
        else:
            assert self._evaluation is not None, "the teacher sees the images of the batch"
            pixels: Any = (batch if self._of_teacher is None else next(self._of_teacher))["images"]
            logits = _batch_logits(*self._evaluation, pixels, batch["mask"])
        return {**batch, TEACHER_LOGITS: logits}

    def close(self) -> None:
        super().close()
        if self._of_teacher is not None:
            self._of_teacher.close()
        # Large, and in the same cycle as in `RunBatches.close`.
        self._table, self._evaluation = None, None


def _evaluation(model: Tuned, context: SweepContext) -> tuple[EvalStatic, EvalInputs]:
    mesh = context.mesh
    task = fit_evaluation(model.task.with_memory(class_shards=mesh.shape[placement.DATA]), runs=1, mesh=mesh)
    # A teacher on the student's frozen model shares its weights on the mesh.
    if task.clip.identity == context.clip.identity and task.classifier.dtype == context.dtype:
        params = context.params
    else:
        params = placement.place_weights(mesh, task.clip.params, task.classifier.dtype)
    return make_evaluation(task, params, stack_runs([jax.device_get(model.learnables)]), runs=1, mesh=mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _look_up(mesh: jax.sharding.Mesh, table: jax.Array, numbers: jax.Array) -> jax.Array:
    # Rows `numbers [R, B]` of `table [R, N, C]`, taken where the batch lies: no logits travel from the host.
    rows = jax.vmap(lambda of_run, places: of_run[places])(table, numbers)
    return placement.constrain(mesh, rows, placement.RUN, placement.DATA)


@functools.partial(jax.jit, static_argnames="static")
def _batch_logits(static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes logits `[R, B, C]` of uint8 images `[R, B, size, size, 3]`, of which `mask [R, B]` counts."""
    # One teacher for all runs: its own axis of a single run goes, and the runs' axis is that of the images.
    classifier = static.classifier
    assert static.preprocessing is not None and static.mesh is not None, "batches of a training lie on a mesh"
    learnables = jax.tree.map(lambda leaf: leaf[0], inputs.learnables)
    adaptation = classifier.method.adapt(learnables)
    text = inputs.text[0] if isinstance(inputs.text, jax.Array) else inputs.text

    def of_run(images: jax.Array, mask: jax.Array) -> jax.Array:
        features = classifier.encode_images(inputs.params, adaptation, images)
        texts = classifier.encode_text_for(inputs.params, learnables, adaptation, features, text)
        return classifier.head(inputs.params, learnables, features, texts, mask)

    every_run = over_runs(of_run, (0, 0), runs=len(images), mesh=static.mesh)
    logits = every_run(static.preprocessing.normalize(images), mask)
    return placement.constrain(static.mesh, logits, placement.RUN, placement.DATA)
