"""The training loop: batch, step, metrics, checkpoint, and the notice to stop.

Independent runs of one task train side by side in one program; every array of theirs has a leading axis `R`.
"""

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from clipbias import hosts
from clipbias.training import mesh as meshes
from clipbias.training.batches import RunBatches
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.device_memory import explain_exhaustion
from clipbias.training.features import FeatureBatches, epoch_features
from clipbias.training.job import TrainJob, TrainResult
from clipbias.training.memory import MemoryPlan
from clipbias.training.metrics import MetricWriter, StepReport
from clipbias.training.profile import StepProfile
from clipbias.training.step import train_step
from clipbias.training.step_inputs import StepScalars, StepStatic, TrainState, init_state, place_inputs
from clipbias.training.teacher import TaughtBatches
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.learnables import with_constants
from clipbias.tuning.method import Learnables

# Steps whose time decides how often checkpoints are saved. The first one compiles and does not count.
_TIMED_STEPS = 3

Batches = RunBatches | FeatureBatches | TaughtBatches


def train(job: TrainJob, start: Learnables) -> TrainResult:
    """Trains the runs of a stage to the end, from the latest checkpoint if there is one.

    Args:
      job: a stage.
      start: the learnables before the first step, leading axis `R`, on the host.

    Raises:
      ClipbiasError: the loss is not finite, or the device's memory is exhausted. The last checkpoint stays.
      hosts.Stopped: a notice to stop came. The state is saved.
    """
    began = time.monotonic()
    mesh = job.context.mesh
    runs = len(job.runs)
    logging = job.logging
    images = job.rows * runs
    total = job.steps
    static = StepStatic(
        job.task.classifier,
        job.task.clip.preprocessing,
        job.training,
        mesh,
    )
    schedule = _Schedule(job)
    with contextlib.ExitStack() as opened:
        checkpoints = _open_checkpoints(opened, job)
        step, state, losses = _first_state(job, start, checkpoints)
        seeds = meshes.pad(np.asarray(job.seeds, np.int32), job.padded_runs)
        inputs = place_inputs(mesh, job.task, job.context.params, meshes.pad(start, job.padded_runs), seeds)
        batches = _open_batches(opened, job, step)
        report = _open_report(opened, job, step, losses, batches, images=images)
        profile = StepProfile(logging.metrics if logging.profile else None, first=step, total=total)
        opened.callback(profile.close)
        interval = _Interval(logging.checkpoint_seconds)
        with explain_exhaustion(_advice(job.plan)):
            while step < total:
                profile.before(step)
                batch = next(batches)
                state, metrics = train_step(static, inputs, state, batch, schedule.scalars(step))
                del batch  # the device keeps what it still computes from, and the next one needs the room
                batches.computes(metrics["loss"])
                profile.after(step, metrics)
                step += 1
                report.step(logging.steps_before + step, metrics, schedule.rates[step - 1])
                stops = hosts.stops()
                if checkpoints is not None and (stops or _is_kept(job, step) or interval.is_over(last=step == total)):
                    report.catch_up()  # nothing is saved after a loss that is not finite
                    checkpoints.save(step, meshes.unpad(mesh, state, runs), report.losses)
                if stops:
                    _stop(job, step, checkpoints)
            report.catch_up()
    learned = meshes.unpad(mesh, state.learnables if state.average is None else state.average, runs)
    return TrainResult(
        learnables=with_constants(meshes.device_get(learned), start),
        losses=tuple(report.losses),
        steps=total,
        seconds=time.monotonic() - began,
        waiting_share=batches.waiting_share,
        skipped=batches.skipped(),
    )


class _Schedule:
    """The numbers of each step.

    Attributes:
      rates: learning rates, float64 `[steps, R]`.
      weights: of the learnables after each step in their average, `[steps]`; `None` without an average.
    """

    def __init__(self, job: TrainJob) -> None:
        recipe = job.training
        examples = job.examples
        self._job = job
        self.rates = np.stack(
            [recipe.with_learning_rate(run.learning_rate).step_rates(examples) for run in job.runs], axis=1
        )
        self.weights: np.ndarray | None = None
        of_epochs = job.task.method.average(recipe.total_epochs(examples))
        if of_epochs is not None:  # epochs end with the learnables that enter the average
            per_epoch = recipe.steps_per_epoch(examples)
            done = np.arange(1, job.steps + 1)
            ends = (done % per_epoch == 0) | (done == job.steps)
            self.weights = np.where(ends, np.asarray(of_epochs)[(done - 1) // per_epoch], 0).astype(np.float32)

    def scalars(self, step: int) -> StepScalars:
        """The numbers of a step, from 0, on the mesh."""
        mesh = self._job.context.mesh
        rates = meshes.pad(self.rates[step].astype(np.float32), self._job.padded_runs)
        return StepScalars(
            learning_rate=meshes.device_put(mesh, rates, meshes.RUN),
            weight=None if self.weights is None else meshes.replicate(mesh, self.weights[step]),
        )


def _open_checkpoints(opened: contextlib.ExitStack, job: TrainJob) -> Checkpoints | None:
    if job.logging.checkpoints is None:
        return None
    checkpoints = Checkpoints(job.logging.checkpoints)
    opened.callback(checkpoints.close)
    return checkpoints


def _first_state(
    job: TrainJob, start: Learnables, checkpoints: Checkpoints | None
) -> tuple[int, TrainState, Sequence[float] | None]:
    """The step that the job goes on from, its state on the mesh, and its losses: `None` at the first step."""
    step = 0
    state = init_state(job.task.method, job.training, start)
    losses = None
    if checkpoints is not None and (restored := checkpoints.restore(state)) is not None:
        step, state, losses = restored
    return step, meshes.device_put(job.context.mesh, meshes.pad(state, job.padded_runs), meshes.RUN), losses


def _open_batches(opened: contextlib.ExitStack, job: TrainJob, start_step: int) -> Batches:
    """Batches from a step on: of images, or of features for a method that sees these."""
    context = job.context
    sampling = sampling_of(job.task.method)
    batches: Batches
    images = [run.images for run in job.runs]
    if job.teacher is not None:
        batches = TaughtBatches(
            job.teacher,
            images,
            job.seeds,
            job.training,
            context,
            resizing=job.task.clip.preprocessing.resizing,
            start_step=start_step,
        )
    elif sampling is None:
        batches = RunBatches(
            images,
            job.seeds,
            job.training,
            context.mesh,
            resizing=job.task.clip.preprocessing.resizing,
            start_step=start_step,
            workers=context.workers,
            on_error=context.on_image_error,
        )
    else:
        sources = [context.features(run.images, run.seed, sampling) for run in job.runs]
        epochs = job.training.total_epochs(job.examples)
        batches = FeatureBatches(
            [epoch_features(source, sampling, epochs) for source in sources],
            [run.images.labels for run in job.runs],
            job.seeds,
            job.training,
            context.mesh,
            pooled=sampling.training == "pooled",
            start_step=start_step,
            readable=[source.readable for source in sources],
        )
    opened.callback(batches.close)
    return batches


def _open_report(
    opened: contextlib.ExitStack,
    job: TrainJob,
    step: int,
    losses: Sequence[float] | None,
    batches: Batches,
    *,
    images: int,
) -> StepReport:
    """Progress and metrics of the steps that are left, of so many images each; the metrics of the others stay."""
    logging = job.logging
    total = job.steps
    progress = job.logging.progress
    if progress is not None:
        opened.callback(progress.close)
        progress.start(total, done=step)
        if job.plan is not None:
            progress.say(f"memory: {job.plan}")
    metrics = None
    if logging.metrics is not None and step < total:
        writer = MetricWriter(
            logging.metrics,
            start_step=logging.steps_before + step + 1,
            steps=logging.total_steps or total,
            trackers=logging.trackers,
        )
        metrics = opened.enter_context(writer)
    return StepReport(
        type(job.task.method).__name__,
        job.seeds,
        progress,
        metrics,
        images=images,
        losses=losses,
        waiting=(lambda: batches.waiting_share) if not isinstance(batches, FeatureBatches) else None,
        ends_on_failure=logging.ends_on_failure,
    )


def _is_kept(job: TrainJob, step: int) -> bool:
    """Whether this is the last step, and other stages follow or the same job comes again."""
    logging = job.logging
    return step == job.steps and (logging.keeps_last or step < (logging.total_steps or 0) - logging.steps_before)


def _stop(job: TrainJob, step: int, checkpoints: Checkpoints | None) -> None:
    if checkpoints is not None:
        checkpoints.wait()
    logging = job.logging
    raise hosts.Stopped(
        f"stopped at step {logging.steps_before + step} of {logging.total_steps or job.steps}; the same command "
        "continues."
    )


class _Interval:
    """When to save: after so many steps, a number that all processes agree on once, since their clocks differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps = 0
        self._began = 0.0
        self._every = 0 if seconds else 1

    def is_over(self, *, last: bool) -> bool:
        """Whether to save after this step; called after each. The `last` one is saved where training took long."""
        self._steps += 1
        if not self._every:
            if self._steps == 1:
                self._began = time.monotonic()
            if self._steps == 1 + _TIMED_STEPS:
                each = (time.monotonic() - self._began) / _TIMED_STEPS
                self._every = hosts.from_first(lambda: max(1, round(self._seconds / max(each, 1e-6))))
        if not self._every or self._steps < self._every:
            return False
        return last or not self._steps % self._every


def _advice(plan: MemoryPlan | None) -> str:
    """What to do where a step exhausts the memory."""
    needs = "" if plan is None else f"a step needs {plan}: "
    return f"{needs}lower --config.batch_size, raise --config.class_chunks, or set --config.remat=tokens."
