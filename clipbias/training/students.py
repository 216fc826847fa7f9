"""Fits students to a tuned model: simpler forms that learn its predictions on unlabelled images."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from scipy.special import log_softmax

from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.training import placement
from clipbias.training.context import SweepContext
from clipbias.training.loop import Run, RunOutputs, TrainJob, train_job
from clipbias.training.teacher import split_logits
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import select_run
from clipbias.tuning.prompts import ClassList
from clipbias.tuning.tuned import Tuned

FIT_STEPS = 1500
FIT_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of a student.

    Attributes:
      method: the method that learns it, with default options.
      words: its description in a sentence.
      learning_rate: of Adam, from a pilot on the embedded model.
      folds: whether it changes weights alone, so that the result is a plain CLIP.
    """

    method: str
    words: str
    learning_rate: float
    folds: bool = True

    def task(self, clip: Clip, classes: ClassList, dtype: str = "float32") -> Task:
        """Binds the student's method to a teacher's classes."""
        return Task(clip, self.method, classes, dtype=dtype)


# From few numbers to many.
STUDENT_FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "vector": Form("bias", "one vector per layer", 0.08),
        "kind": Form("bias_by_kind", "two vectors per layer", 0.08, folds=False),
        "layer_norm": Form("layer_norm", "changes of the LayerNorms", 0.02),
        "lora": Form("lora", "changes of rank 2 in all kernels", 0.01),
    }
)

# Forms that add the same vectors to every image.
UNIFORM_FORMS = ("vector", "kind")
# `select_learning_rate` fits a method to its own outputs: from the first rate by a factor as long as the divergence on
# held-back images falls, with at most so many steps each.
FIRST_RATE = 0.005
RATE_FACTOR = 4.0
TRIAL_STEPS = 300


def fit_recipe(*, learning_rate: float, steps: int = FIT_STEPS, batch_size: int = FIT_BATCH) -> Recipe:
    """Adam with a cosine over all steps, without decay or augmentation."""
    return Recipe(
        learning_rate=learning_rate,
        optimizer="adam",
        weight_decay=0.0,
        warmup_epochs=0,
        schedule="steps",
        steps=steps,
        batch_size=batch_size,
        augment=False,
    )


def fit_student(
    student: Task,
    teacher: Tuned,
    split: Split,
    recipe: Recipe,
    context: SweepContext,
    *,
    seed: int,
    outputs: RunOutputs,
) -> Tuned:
    """Trains a student, bound to the teacher's classes; its learnables lie on the host.

    The seed decides the start and the order of images. A finished fit is read from its checkpoints. Raises
    `ClipbiasError` where the method cannot learn from a teacher, the loss is not finite, or an image is unreadable.
    """
    splits = {"train": split, "test": split.subset([])}
    dataset = Dataset("unlabelled images", student.class_names, student.template, splits)
    (run_images,) = context.training_images([split])
    job = TrainJob(
        context=context,
        task=student.with_memory(class_shards=context.mesh.shape[placement.DATA]),
        # The rate of the run counts; a constant rate in the recipe lets all fits of a form share one program.
        recipe=recipe.with_learning_rate(FIRST_RATE),
        runs=(Run(run_images, seed, protocols.full(dataset), learning_rate=recipe.learning_rate),),
        teacher=teacher,
        outputs=dataclasses.replace(outputs, keeps_last=True),
    )
    return Tuned(student, select_run(train_job(job).learnables, 0))


def select_learning_rate(divergence: Callable[[float], float], *, first: float = FIRST_RATE, most: int = 8) -> float:
    """Searches the learning rate of the lowest divergence, up or down from the first, with at most `most` fits.

    `divergence(rate)` fits with a rate; NaN where the fit fails.
    """
    tried = {rate: divergence(rate) for rate in (first, first * RATE_FACTOR, first / RATE_FACTOR)}
    while len(tried) < most:
        best = min(tried, key=lambda rate: (np.isnan(tried[rate]), tried[rate]))
        # The curve has one valley: the search ends where the best rate lies between two others.
        further = {max(tried): best * RATE_FACTOR, min(tried): best / RATE_FACTOR}
        if best not in further:
            return best
        tried[further[best]] = divergence(further[best])
    return min(tried, key=lambda rate: (np.isnan(tried[rate]), tried[rate]))


def mean_divergence(teacher: Tuned, student: Tuned, split: Split, context: SweepContext) -> float:
    """Returns the mean of `divergences` over images that both models could read, in nats."""
    opened = Images(split)
    expected, read = split_logits(teacher, opened, context)
    actual, also_read = split_logits(student, opened, context)
    return float(divergences(expected[read & also_read], actual[read & also_read]).mean())


def divergences(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Returns `KL(softmax teacher ‖ softmax student)` of logits `[n, C]`, in nats and float64: `[n]`."""
    # In float64, since the divergence of a close student is a small difference of large terms.
    log_p, log_q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (teacher, student))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
