"""Trains a job: plan its stages, collect features, start the learnables, train stage by stage, finish them.

A stage goes batch by batch through the jitted step, with metrics and checkpoints, until its last step or a notice to
stop.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.batches import RunBatches
from clipbias.training.device import explain_exhaustion
from clipbias.training.evaluate import EvalInputs, EvalStatic, text_features
from clipbias.training.features import FeatureBatches, epoch_features, support_features
from clipbias.training.job import TrainJob, TrainResult, check_images, check_side_by_side, plan_stages
from clipbias.training.mesh import device_get
from clipbias.training.progress import METRICS, MetricWriter, StepProfile, StepReport, Stopwatch, step_seconds
from clipbias.training.step import StepScalars, StepStatic, init_state, place_inputs, place_text, train_step
from clipbias.training.teacher import TaughtBatches, check_student
from clipbias.tuning import Samples
from clipbias.tuning.method import FeatureMethod, Learnables, sampling_of, select_run, stack_runs, with_constants


class Checkpoints:
    """The checkpoints of one run in a folder of its own, the latest two kept. All processes call its methods alike.

    Only this class knows orbax: saves are asynchronous, atomic, and restored onto any mesh. States are small: each is
    fetched whole, the first process writes it, and a restored one lies on the host. Whatever fails is a
    `ClipbiasError`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Opens or creates the folder. Raises `ClipbiasError` if it cannot be read or written."""
        from orbax.checkpoint import v1 as ocp

        self._folder = os.fspath(folder)
        with self._explained("open the checkpoints"):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder if "://" in self._folder else Path(self._folder).resolve(),
                preservation_policy=ocp.training.preservation_policies.LatestN(2),
                cleanup_tmp_directories=True,
            )
            # It would ask JAX for a notice to stop, counting steps by other numbers than `hosts.stops` does.
            self._checkpointer._manager.reached_preemption = lambda step: False

    def restore(self, like: Any) -> tuple[int, Any, list[float]] | None:
        """Step, state (on the host) and losses of the latest checkpoint, shaped as `like`; `None` without one."""
        latest = self._checkpointer.latest
        step = hosts.from_first(lambda: None if latest is None else latest.step)  # not all hosts may see it yet
        if step is None:
            return None
        shapes = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
        with self._explained(f"read the checkpoint of step {step}"):
            loaded = self._checkpointer.load(step, shapes)
            losses = self._checkpointer.metadata(step).custom_metadata["losses"]
            arrays = {name: np.asarray(loaded[name]) for name in shapes}
            for name, leaf in arrays.items():
                if (leaf.shape, leaf.dtype) != (shapes[name].shape, shapes[name].dtype):
                    raise ValueError(f"{name} has the shape {leaf.shape}, not {shapes[name].shape}")
        return step, jax.tree.unflatten(jax.tree.structure(like), arrays.values()), losses

    def save(self, step: int, state: Any, losses: Sequence[float]) -> None:
        """Starts saving the state after `step` steps, and each run's loss, once the save before it is on disk."""
        # Copies: the next step may write into the memory of those on a device.
        named = {name: np.array(leaf, order="C") for name, leaf in _named(device_get(state)).items()}
        metadata = {"losses": [float(loss) for loss in losses]}
        with self._explained("save a checkpoint"):
            self._checkpointer.wait()
            self._checkpointer.save_async(step, named, force=True, custom_metadata=metadata)

    def wait(self) -> None:
        with self._explained("save a checkpoint"):
            self._checkpointer.wait()

    def close(self) -> None:
        with self._explained("save a checkpoint"):
            self._checkpointer.close()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax wraps errors of the disk in its own
            words = re.search(r": ([^:\[]+?) \[os_error_code", f"{error} {error.__cause__}")
            reason = words[1] if words else (str(error) or type(error).__name__).splitlines()[0]
            raise ClipbiasError(
                f"cannot {what} in {self._folder}: {reason}; see to the disk and run the same command again, or remove "
                "that folder to start anew."
            ) from error


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their path, which does not depend on the classes of its containers."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


# Steps whose time decides how often checkpoints are saved. The first one compiles and does not count.
_TIMED_STEPS = 3

Batches = RunBatches | FeatureBatches | TaughtBatches


def train(job: TrainJob, start: Learnables) -> TrainResult:
    """Trains the runs of a stage to the end, from the latest checkpoint or from learnables `[R, …]` on the host.

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
    static = StepStatic.of(job.task, job.training, mesh)
    rates, weights = _step_numbers(job)
    # The last step is saved where the job is read again: other stages follow, or `keeps_last`.
    keeps_last = logging.keeps_last or total < (logging.total_steps or 0) - logging.steps_before
    needs = "" if job.plan is None else f"a step needs {job.plan}: "
    advice = f"{needs}lower --config.batch_size, raise --config.class_chunks, or set --config.remat=tokens."
    with contextlib.ExitStack() as opened:
        # The state before the first step, or of the latest checkpoint.
        step, losses, checkpoints = 0, None, None
        state = init_state(job.task.method, job.training, start)
        if logging.checkpoints is not None:
            checkpoints = Checkpoints(logging.checkpoints)
            opened.callback(checkpoints.close)
            if (restored := checkpoints.restore(state)) is not None:
                step, state, losses = restored
        state = meshes.device_put(mesh, meshes.pad(state, job.padded_runs), meshes.RUN)
        seeds = meshes.pad(np.asarray(job.start_seeds, np.int32), job.padded_runs)
        inputs = place_inputs(mesh, job.task, job.context.params, meshes.pad(start, job.padded_runs), seeds)
        batches = _open_batches(opened, job, step)
        report = _open_report(opened, job, step, losses, batches, images=images)
        profile = StepProfile(logging.metrics if logging.profile else None, first=step, total=total)
        opened.callback(profile.close)
        interval = _Interval(logging.checkpoint_seconds)
        first = step
        with explain_exhaustion(advice):
            while step < total:
                profile.before(step)
                batch = next(batches)
                of_step = meshes.pad(rates[step].astype(np.float32), job.padded_runs)
                scalars = StepScalars(
                    learning_rate=meshes.device_put(mesh, of_step, meshes.RUN),
                    weight=None if weights is None else meshes.replicate(mesh, weights[step]),
                )
                state, metrics = train_step(static, inputs, state, batch, scalars)
                del batch  # the device keeps what it still computes from, and the next one needs the room
                batches.computes(metrics["loss"])
                profile.after(step, metrics)
                step += 1
                report.step(logging.steps_before + step, metrics, rates[step - 1])
                if step == first + 1:  # it was compiled
                    logging.at_work("training")
                stops = hosts.stops()
                last = step == total
                if checkpoints is not None and (stops or (last and keeps_last) or interval.is_over(last=last)):
                    report.catch_up()  # nothing is saved after a loss that is not finite
                    checkpoints.save(step, meshes.unpad(mesh, state, runs), report.losses)
                if stops:
                    if checkpoints is not None:
                        checkpoints.wait()
                    raise hosts.Stopped(
                        f"stopped at step {logging.steps_before + step} of {logging.total_steps or total}; the same "
                        "command continues."
                    )
            report.catch_up()
    learnables = meshes.unpad(mesh, state.learnables if state.average is None else state.average, runs)
    return TrainResult(
        learnables=with_constants(meshes.device_get(learnables), start),
        losses=tuple(report.losses),
        steps=total,
        seconds=time.monotonic() - began,
        waiting_share=batches.waiting_share,
        skipped=batches.skipped(),
    )


def _step_numbers(job: TrainJob) -> tuple[np.ndarray, np.ndarray | None]:
    """Learning rates of all steps, float64 `[steps, R]`.

    And the weights of the learnables after each step in their average, `[steps]`; `None` without an average.
    """
    recipe = job.training
    examples = job.examples
    rates = np.stack([recipe.with_learning_rate(run.learning_rate).step_rates(examples) for run in job.runs], axis=1)
    of_epochs = job.task.method.average(recipe.total_epochs(examples))
    if of_epochs is None:
        return rates, None
    # Epochs end with the learnables that enter the average.
    per_epoch = recipe.steps_per_epoch(examples)
    done = np.arange(1, job.steps + 1)
    ends = (done % per_epoch == 0) | (done == job.steps)
    return rates, np.where(ends, np.asarray(of_epochs)[(done - 1) // per_epoch], 0).astype(np.float32)


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
            job.start_seeds,
            job.training,
            context,
            resizing=job.task.clip.preprocessing.resizing,
            start_step=start_step,
        )
    elif sampling is None:
        batches = RunBatches(
            images,
            job.start_seeds,
            job.training,
            context.mesh,
            resizing=job.task.clip.preprocessing.resizing,
            start_step=start_step,
            workers=context.workers,
            on_error=context.on_image_error,
        )
    else:
        sources = [context.features(run.images, run.start_seed, sampling) for run in job.runs]
        epochs = job.training.total_epochs(job.examples)
        batches = FeatureBatches(
            [epoch_features(source, sampling, epochs) for source in sources],
            [run.images.labels for run in job.runs],
            job.start_seeds,
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
        progress.start(logging.total_steps or total, done=logging.steps_before + step)
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
        job.start_seeds,
        progress,
        metrics,
        images=images,
        losses=losses,
        waiting=(lambda: batches.waiting_share) if not isinstance(batches, FeatureBatches) else None,
        ends_on_failure=logging.ends_on_failure,
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


# The job around its stages.


def train_job(job: TrainJob) -> TrainResult:
    method = job.task.method
    if job.teacher is not None:
        check_student(job.task, job.teacher)
    check_images(job)
    host = Stopwatch()
    stages = plan_stages(job)
    check_side_by_side(stages)
    samples = sample_features(job)
    with host:
        start = stack_runs([jax.device_get(job.task.init(run.start_seed)) for run in job.runs])
        if isinstance(method, FeatureMethod):
            start = _each_run(method.support, start, samples)
    if not stages:
        return TrainResult(start, training_seconds=_training_seconds(job, stages, samples, host.seconds))
    # Stage by stage. One whose checkpoints have its last step makes none.
    results = list[TrainResult]()
    learnables = _next_stage(job, 0, start, None)
    for number, stage in enumerate(stages):
        results.append(train(stage, learnables))
        learnables = results[-1].learnables
        text = _stage_texts(stage, learnables) if stage is not stages[-1] else None
        learnables = _next_stage(job, number + 1, learnables, text)
    if isinstance(method, FeatureMethod) and method.overrides("finish"):
        with host:
            learnables = _each_run(method.finish, learnables, samples)
    seconds = sum(result.seconds for result in results)
    waiting = sum(result.waiting_share * result.seconds for result in results)
    return TrainResult(
        learnables=learnables,
        losses=results[-1].losses,
        steps=sum(result.steps for result in results),
        seconds=seconds,
        waiting_share=waiting / max(seconds, 1e-9),
        skipped=tuple(max(counts) for counts in zip(*(result.skipped for result in results), strict=True)),
        training_seconds=_training_seconds(job, stages, samples, host.seconds),
    )


def sample_features(job: TrainJob) -> list[Samples]:
    """Features of each run's training images, and of its validation images where the method asks for them; or none."""
    context = job.context
    sampling = sampling_of(job.task.method)
    if sampling is None:
        return []
    text = place_text(context.mesh, job.task, context.params)
    assert isinstance(text, jax.Array), "a method on features of images leaves the text tower alone"
    texts = np.asarray(job.task.classifier.split_by_template(text))
    scale = float(np.exp(np.float32(context.clip.params["logit_scale"])))
    samples = []
    for run in job.runs:
        validation = validation_labels = None
        split = run.protocol.validation() if sampling.validation else None
        if split is not None:
            source = context.features(Images(split), run.start_seed, sampling)
            validation = source.plain()[0][source.readable]
            validation_labels = split.labels[source.readable]
        source = context.features(run.images, run.start_seed, sampling)
        features = support_features(source, sampling)  # it finds out which images can be read
        of_run = Samples(
            features=features,
            labels=np.asarray(run.images.labels)[source.readable],
            text=texts,
            scale=scale,
            validation=validation,
            validation_labels=validation_labels,
            seed=run.start_seed,
        )
        samples.append(of_run)
    return samples


def _each_run(
    hook: Callable[[Learnables, Samples], Learnables], learnables: Learnables, samples: Sequence[Samples]
) -> Learnables:
    results = [hook(select_run(learnables, run), of_run) for run, of_run in enumerate(samples)]
    return stack_runs(jax.device_get(results))


def _next_stage(job: TrainJob, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
    method = job.task.method
    if not method.overrides("next_stage"):
        return learnables
    starts = [
        method.next_stage(stage, select_run(learnables, run), None if text is None else text[run])
        for run in range(len(job.runs))
    ]
    return stack_runs(jax.device_get(starts))


def _stage_texts(stage: TrainJob, learnables: Learnables) -> np.ndarray:
    """The texts under each run's learnables: `[R, S, C, d]`."""
    mesh = stage.context.mesh
    params = stage.context.params
    task = stage.task
    runs = len(stage.runs)
    text = place_text(mesh, task, params)
    if isinstance(text, jax.Array):  # no learnable changes it
        features = jnp.broadcast_to(text, (runs, *text.shape))
    else:
        static = EvalStatic(task.classifier, task.clip.preprocessing, mesh, runs)
        inputs = EvalInputs(params, meshes.device_put(mesh, learnables, meshes.RUN), text)
        features = text_features(static, inputs)
    return np.asarray(meshes.device_get(task.classifier.split_by_template(features)))


def _training_seconds(
    job: TrainJob, stages: Sequence[TrainJob], samples: Sequence[Samples], host: float
) -> tuple[float, ...]:
    """Each run's share of the time of training: its own features, and equal shares of what all runs do together.

    `host` are seconds of the method's own computations.
    """
    runs = len(job.runs)
    folder = job.logging.metrics
    sampling = sampling_of(job.task.method)
    steps = 0.0 if folder is None else step_seconds(folder / METRICS, [stage.steps for stage in stages])
    if sampling is None:
        return (steps / runs,) * runs
    passes = max(sampling.passes, 1)
    if stages and sampling.training == "fresh":
        passes += stages[0].training.total_epochs(job.examples)
    seconds = []
    for run, of_run in zip(job.runs, samples, strict=True):
        count = passes * len(of_run.labels) + (0 if of_run.validation is None else len(of_run.validation))
        features = job.context.features(run.images, run.start_seed, sampling).seconds(count)
        seconds.append(features + (steps + host) / runs)
    return tuple(seconds)
