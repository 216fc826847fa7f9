"""Fits students to a tuned model: simpler forms that learn its predictions on unlabelled images."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.training import placement
from clipbias.training.context import SweepContext
from clipbias.training.loop import Run, RunOutputs, TrainJob, train_job
from clipbias.training.teacher import split_logits
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import select_run
from clipbias.tuning.tuned import Tuned

FIT_STEPS = 1500
FIT_BATCH = 16
# Cycles of a fit (`until_plateau`): steps of the first, and the share of the divergence by which each must lower it.
FIRST_CYCLE = 40
PLATEAU = 0.1


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of a student: a method with default options, its words in a sentence, and Adam's first rate of a search.

    A form that `folds` changes weights alone, so that the result is a plain CLIP.
    """

    method: str
    words: str
    learning_rate: float
    folds: bool = True


# From few numbers to many.
STUDENT_FORMS: Mapping[str, Form] = {
    "vector": Form("bias", "one vector per layer", 0.08),
    "kind": Form("bias_by_kind", "two vectors per layer", 0.08, folds=False),
    "layer_norm": Form("layer_norm", "changes of the LayerNorms", 0.02),
    "lora": Form("lora", "changes of rank 2 in all kernels", 0.01),
}

# Forms that add the same vectors to every image.
UNIFORM_FORMS = ("vector", "kind")
# First learning rate of a search for a method, and the factor between two rates of a search.
FIRST_RATE = 0.005
RATE_FACTOR = 4.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted student. Divergences are mean KL from the teacher in nats."""

    student: Tuned
    learning_rate: float
    steps: int  # of all cycles
    plateau: bool  # whether the fit ended at a plateau, not at its last allowed step
    held_back_divergence: float
    fitted_divergence: float = np.nan


def fit_recipe(*, learning_rate: float, steps: int = FIT_STEPS, batch_size: int = FIT_BATCH) -> Recipe:
    """Adam with a cosine over all steps, without decay or augmentation."""
    # Not augmented: the teacher then sees each image once, not in every step (`TaughtBatches`).
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
    task: Task,
    teacher: Tuned,
    images: Split,
    held_back: Split,
    context: SweepContext,
    *,
    rate: float,
    searched: bool = True,
    most_steps: int,
    batch_size: int = FIT_BATCH,
    seed: int,
    initial: Tuned | None = None,
    outputs: RunOutputs,
) -> Fit:
    """Fits a student, bound to the teacher's classes, until a plateau; its learnables lie on the host.

    The seed decides the order of images, and the start without `initial`. Raises `ClipbiasError` where the method
    cannot learn from a teacher, no rate has a finite loss, or an image is unreadable.
    """
    splits = {"train": images, "test": images.subset([])}
    protocol = protocols.full(Dataset("unlabelled images", task.class_names, task.template, splits))

    def cycle(rate: float, steps: int, start: Tuned | None) -> Tuned:
        recipe = fit_recipe(learning_rate=rate, steps=steps, batch_size=batch_size)
        (run_images,) = context.training_images([images])
        start = initial if start is None else start
        # The folder is named by all that a cycle depends on, so other fits beside this one find it, and no other.
        name = f"{Path(task.method_name).stem}-{identity([teacher, task, images, recipe, seed, start])[:12]}"
        progress = outputs.progress.part(steps, f"{task.method_name} fitted to {teacher.task.method_name}")
        job = TrainJob(
            context=context,
            task=task.with_memory(class_shards=context.mesh.shape[placement.DATA]),
            recipe=recipe,
            runs=(Run(run_images, seed, protocol, start=None if start is None else start.learnables),),
            teacher=teacher,
            outputs=outputs.below(name, progress=progress, keeps_last=True),
        )
        student = Tuned(task, select_run(train_job(job).learnables, 0))
        progress.at_work("predicting")
        return student

    def divergence(student: Tuned) -> float:
        return mean_divergence(teacher, student, held_back, context)

    fit = until_plateau(cycle, divergence, rate=rate, searched=searched, most_steps=most_steps)
    return dataclasses.replace(fit, fitted_divergence=mean_divergence(teacher, fit.student, images, context))


def until_plateau(
    cycle: Callable[[float, int, Tuned | None], Tuned],
    divergence: Callable[[Tuned], float],
    *,
    rate: float,
    searched: bool = True,
    most_steps: int,
) -> Fit:
    """Fits by cosine cycles with warm restarts (Loshchilov & Hutter 2017, arXiv 1608.03983) until a plateau.

    `cycle(rate, steps, start)` trains a student, from the method's own start for `None`; `divergence` is its mean KL on
    held-back images. With `searched` the first cycle searches the learning rate from `rate` on.
    """
    # Each cycle starts from the best student so far: a restart that goes astray is not followed.
    first, *others = cycle_lengths(most_steps)
    trials: dict[float, Tuned] = {}

    def trial(rate: float) -> float:
        try:
            trials[rate] = cycle(rate, first, None)
            return divergence(trials[rate])
        except ClipbiasError:  # the loss is not finite: the rate is too high
            return np.nan

    if searched:
        rate = select_learning_rate(trial, first=rate)
    # Without a trial that ended, its error is raised here.
    best = trials[rate] if rate in trials else cycle(rate, first, None)
    lowest = divergence(best)
    steps = first
    plateau = False
    for number, length in enumerate(others, start=2):
        student = cycle(rate, length, best)
        reached = divergence(student)
        steps += length
        # At the end of a cycle the rate is 0: within it the divergence is mostly noise of the steps.
        # The second is so short that a slow start, as of a map from 0, would look like a plateau.
        plateau = number > 2 and not reached < (1 - PLATEAU) * lowest
        if reached < lowest:
            best, lowest = student, reached
        if plateau:
            break
    return Fit(best, rate, steps, plateau, lowest)


def steps_of_fits(count: int, most_steps: int) -> int:
    """Returns the steps of several fits without a plateau, whose searches try three rates, the fewest."""
    return count * (most_steps + 2 * cycle_lengths(most_steps)[0])


def cycle_lengths(most_steps: int) -> list[int]:
    """Returns the steps of each cycle of a fit: `FIRST_CYCLE`, then twice as many as before, in all `most_steps`."""
    # The paper's `T_mult = 2`: a fit that has not reached a plateau is worth longer and longer cycles.
    lengths, rest, each = [], most_steps, FIRST_CYCLE
    while rest:
        # The last cycle takes what no full cycle could follow: a shorter one would look like a plateau.
        lengths.append(each if rest >= 3 * each else rest)
        rest -= lengths[-1]
        each *= 2
    return lengths


def select_learning_rate(divergence: Callable[[float], float], *, first: float = FIRST_RATE, most: int = 8) -> float:
    """Searches the rate of the lowest `divergence(rate)`, NaN where a fit fails, up or down from the first."""
    tried = {rate: divergence(rate) for rate in (first, first * RATE_FACTOR, first / RATE_FACTOR)}
    while True:
        best = min(tried, key=lambda rate: (np.isnan(tried[rate]), tried[rate]))
        # The curve has one valley: the search ends where the best rate lies between two others.
        further = {max(tried): best * RATE_FACTOR, min(tried): best / RATE_FACTOR}
        if best not in further or len(tried) >= most:
            return best
        tried[further[best]] = divergence(further[best])


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
