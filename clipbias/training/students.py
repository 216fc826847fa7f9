"""Fits a form to a tuned model: a student on the frozen model learns its predictions on unlabelled images."""

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

STEPS = 1500
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Form:
    """What a tuned model can be exchanged for.

    Attributes:
      method: the method that learns it, with its default options.
      learning_rate: of Adam, from a pilot on the embedded model.
      words: what it is, in a sentence.
      folds: whether it is a change of weights, so that the result is a plain CLIP.
    """

    method: str
    words: str
    learning_rate: float
    folds: bool = True

    def task(self, clip: Clip, classes: ClassList, dtype: str = "float32") -> Task:
        """The task of a student for a teacher's classes."""
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

# Those that are the same for every image.
UNIFORM_FORMS = ("vector", "kind")
# A method that is fitted to its own outputs has the rate of the lowest divergence on held-back images: the first, or
# further ones by a factor for as long as that falls, each tried with at most so many steps.
FIRST_RATE = 0.005
RATE_FACTOR = 4.0
TRIAL_STEPS = 300


def fit_recipe(*, learning_rate: float, steps: int = STEPS, batch_size: int = BATCH_SIZE) -> Recipe:
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
    images: Split,
    recipe: Recipe,
    context: SweepContext,
    *,
    seed: int,
    outputs: RunOutputs,
) -> Tuned:
    """A student, bound to the teacher's classes, after its training; its learnables lie on the host.

    Labels of the images are not read. The seed is of the start and of the order of images. A fit that is done is read
    from its checkpoints. Raises `ClipbiasError` where the method cannot learn from a teacher, the loss is not finite,
    or an image cannot be read.
    """
    splits = {"train": images, "test": images.subset([])}
    dataset = Dataset("unlabelled images", student.class_names, student.template, splits)
    (run_images,) = context.training_images([images])
    job = TrainJob(
        context=context,
        task=student.with_memory(class_shards=context.mesh.shape[placement.DATA]),
        recipe=recipe.with_learning_rate(FIRST_RATE),  # the run's counts, so that all rates share a program
        runs=(Run(run_images, seed, protocols.full(dataset), learning_rate=recipe.learning_rate),),
        teacher=teacher,
        outputs=dataclasses.replace(outputs, keeps_last=True),
    )
    return Tuned(student, select_run(train_job(job).learnables, 0))


def select_learning_rate(divergence: Callable[[float], float], *, first: float = FIRST_RATE, most: int = 8) -> float:
    """The learning rate of the lowest divergence, by going up or down from the first for as long as that falls.

    `divergence` is that after a fit with a rate, NaN where it failed. At most `most` rates are tried.
    """
    tried = {rate: divergence(rate) for rate in (first, first * RATE_FACTOR, first / RATE_FACTOR)}
    while len(tried) < most:
        best = min(tried, key=lambda rate: (np.isnan(tried[rate]), tried[rate]))
        further = {max(tried): best * RATE_FACTOR, min(tried): best / RATE_FACTOR}
        if best not in further:
            return best
        tried[further[best]] = divergence(further[best])
    return min(tried, key=lambda rate: (np.isnan(tried[rate]), tried[rate]))


def mean_divergence(teacher: Tuned, student: Tuned, images: Split, context: SweepContext) -> float:
    """The mean of `divergences` over the images that both could read, in nats."""
    opened = Images(images)
    expected, read = split_logits(teacher, opened, context)
    actual, also_read = split_logits(student, opened, context)
    return float(divergences(expected[read & also_read], actual[read & also_read]).mean())


def divergences(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """`KL(softmax teacher ‖ softmax student)` of logits `[n, C]`, in nats and float64: `[n]`."""
    log_p, log_q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (teacher, student))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)
