"""Trains a job, the runs that share a program: plan its stages, collect features, train stage by stage, finish.

A stage goes batch by batch through the jitted step, with metrics and checkpoints, until its last step or a notice to
stop.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias import hosts
from clipbias.data import Split
from clipbias.data.images import Images, check_readable
from clipbias.data.protocols import EvalProtocol
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted
from clipbias.training import mesh as meshes
from clipbias.training.batches import FeatureBatches, RunBatches, epoch_features, support_features
from clipbias.training.context import SweepContext
from clipbias.training.device import AUTO, explain_exhaustion
from clipbias.training.evaluate import EvalInputs, EvalStatic, make_evaluation, text_features
from clipbias.training.memory import MemoryPlan, StepShape, plan_step
from clipbias.training.progress import METRICS, MetricWriter, Progress, StepProfile, StepReport, step_seconds
from clipbias.training.step import StepScalars, StepStatic, init_state, place_inputs, place_text, train_step
from clipbias.training.teacher import TaughtBatches, check_student
from clipbias.tuning import Samples, Task
from clipbias.tuning.method import FeatureMethod, Learnables, sampling_of, select_run, stack_runs, with_constants
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.tuned import Tuned


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One of the runs of a job.

    The start seed decides the initial learnables, and the order and augmentation of images. A learning rate of `None`
    is the recipe's.
    """

    images: Images
    start_seed: int
    protocol: EvalProtocol
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Logging:
    """Where a training is saved and reports. Nothing here changes a number.

    Attributes:
      keeps_last: whether the last step is saved however short the training was, so that the same job ends at once when
        it comes again.
      steps_before, total_steps: of earlier stages, and of all stages; `None` where this stage is the only one.
      ends_on_failure: whether a loss that is not finite ends the training; else that run goes on beside the others.
    """

    checkpoints: Path | None = None
    keeps_last: bool = False
    metrics: Path | None = None
    progress: Progress = dataclasses.field(default_factory=lambda: Progress(shown=False))
    steps_before: int = 0
    total_steps: int | None = None
    ends_on_failure: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class TrainJob:
    """Runs that train side by side in one program. Made once for a group, and handed on whole.

    A *stage* is a training with an optimiser of its own; most methods have one. Each is a job too (`plan_stages`), with
    its task, recipe and plan. Without a recipe no step is made. A teacher's predictions are learned in place of labels.
    """

    context: SweepContext
    task: Task
    recipe: Recipe | None
    runs: tuple[Run, ...]
    teacher: Tuned | None = None
    logging: Logging = dataclasses.field(default_factory=Logging)
    plan: MemoryPlan | None = None

    @property
    def protocol(self) -> EvalProtocol:
        """The evaluations, and the classes of training: they are those of all runs."""
        return self.runs[0].protocol

    @property
    def examples(self) -> int:
        """Number of training images of a run."""
        return len(self.runs[0].images)

    @property
    def start_seeds(self) -> list[int]:
        return [run.start_seed for run in self.runs]

    @property
    def padded_runs(self) -> int:
        return meshes.padded(self.context.mesh, len(self.runs))

    @property
    def training(self) -> Recipe:
        assert self.recipe is not None, "the job makes no step"
        return self.recipe

    @property
    def steps(self) -> int:
        return self.training.total_steps(self.examples)

    @property
    def rows(self) -> int:
        """Images of a step of each run. Raises `ClipbiasError` where the runs differ in their steps."""
        shapes = {
            (self.training.total_steps(len(run.images)), min(len(run.images), self.training.batch_size))
            for run in self.runs
        }
        if len(shapes) > 1:
            raise ClipbiasError("the runs of one group have different numbers of steps; train them separately.")
        return shapes.pop()[1]

    def evaluation(self, task: Task, learnables: Learnables) -> tuple[EvalStatic, EvalInputs]:
        """The arguments of an evaluation of the runs and their padding; `learnables [R, …]` lie on the host."""
        padded = meshes.pad(learnables, self.padded_runs)
        return make_evaluation(task, self.context.params, padded, runs=self.padded_runs, mesh=self.context.mesh)

    @property
    def step_shape(self) -> StepShape:
        return StepShape(self.rows, self.padded_runs, self.context.mesh, self.examples, self.teacher is not None)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a job, or of one of its stages.

    Attributes:
      learnables: of all runs, leading axis `R`, on the host.
      losses: of each run at the last step, in nats; empty where no step was made.
      seconds: wall time of the steps in this process; waiting_share: the share that the devices waited for images.
      skipped: of each run, how many training images could not be read and were masked.
      training_seconds: of each run, whenever it was trained (`progress.step_seconds`).
    """

    learnables: Learnables
    losses: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    waiting_share: float = 0.0
    skipped: tuple[int, ...] = ()
    training_seconds: tuple[float, ...] = ()


def plan_stages(job: TrainJob) -> tuple[TrainJob, ...]:
    """The stages of a job, each with its task, recipe and memory plan; none where no step is made."""
    method = job.task.method
    if job.recipe is None or not jax.tree.leaves(job.task.shapes):
        return ()
    recipe = job.recipe.with_epochs(job.examples)
    if recipe != job.recipe:
        epochs = counted(recipe.total_epochs(job.examples), "epoch")
        job.logging.progress.say(f"{epochs}, {counted(recipe.total_steps(job.examples), 'step')}")
    methods = method.stages(recipe)
    steps = [stage.total_steps(job.examples) for _, stage in methods]
    stages = []
    for number, (stage_method, stage_recipe) in enumerate(methods):
        folder = job.logging.checkpoints
        logging = dataclasses.replace(
            job.logging,
            checkpoints=None if folder is None else folder / f"stage{number}",
            steps_before=sum(steps[:number]),
            total_steps=sum(steps),
        )
        task = job.task if stage_method is method else job.task.with_method(stage_method)
        stage = dataclasses.replace(job, task=task, recipe=stage_recipe, logging=logging)
        job.logging.progress.at_work("compiling a step")
        plan = plan_step(task, stage_recipe, stage.step_shape, job.context.compute)
        stages.append(dataclasses.replace(stage, task=plan.apply(task), plan=plan))
    return tuple(stages)


@contextlib.contextmanager
def compiled_meanwhile(job: TrainJob) -> Iterator[None]:
    """Compiles the first step of a job in another thread while something else is computed; it is kept for the job."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(plan_stages, dataclasses.replace(job, logging=Logging()))  # the job itself meets its errors
        yield


class NotSideBySide(ClipbiasError):
    """Learning rates that are trained one after another: fewer of them fit the memory without loss of time."""


def check_side_by_side(stages: Sequence[TrainJob]) -> None:
    """Raises `NotSideBySide` where fewer learning rates would fit the memory without loss of time."""
    for stage in stages:
        compute = stage.context.compute
        is_set = (compute.remat, compute.class_chunks) != (AUTO, None)
        fastest = stage.plan is None or stage.plan.is_fastest
        if not (is_set or fastest) and len({run.learning_rate for run in stage.runs}) > 1:
            raise NotSideBySide("the learning rates do not fit the memory side by side.")


def check_images(job: TrainJob, others: Sequence[Split] = ()) -> None:
    """Decodes the training images of a job, and others that it needs, before its first step.

    Raises `UnreadableImage` with the names of those that cannot be read; none where they are skipped.
    """
    if job.context.on_image_error == "skip" or not job.task.method.uses_images:
        return
    # Only batches of images as they are evaluated are kept in the size of the model.
    whole = job.recipe is None or job.recipe.augment or sampling_of(job.task.method) is not None
    images = [*(run.images for run in job.runs), *map(Images, others)]
    check_readable(images, None if whole else job.task.clip.preprocessing.resizing, job.context.workers)


def validation_images(job: TrainJob) -> list[Split]:
    """The images of each run that a learning rate is selected on. Raises `ClipbiasError` where there are none."""
    by_protocol = {id(run.protocol): run.protocol for run in job.runs}
    splits = {key: protocol.validation() for key, protocol in by_protocol.items()}
    images = []
    for run in job.runs:
        split = splits[id(run.protocol)]
        if split is None or not len(split):
            raise ClipbiasError(
                f"{job.protocol.source.name}: there are no validation images under the protocol "
                f"{job.protocol.protocol}; a learning rate cannot be chosen there, so leave --config.learning_rates "
                "empty, or test them all: --config.choose=none."
            )
        images.append(split)
    return images


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
        named = {name: np.array(leaf, order="C") for name, leaf in _named(meshes.device_get(state)).items()}
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
        is_traced = job.context.compute.profile == "steps"
        profile = StepProfile(logging.metrics if is_traced else None, first=step, total=total)
        opened.callback(profile.close)
        interval = _Interval(job.context.compute.checkpoint_seconds)
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
                    logging.progress.at_work("training")
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
    logging.progress.start(logging.total_steps or total, done=logging.steps_before + step)
    if job.plan is not None:
        logging.progress.say(f"memory: {job.plan}")
    metrics = None
    if logging.metrics is not None and step < total:
        writer = MetricWriter(
            logging.metrics,
            start_step=logging.steps_before + step + 1,
            steps=logging.total_steps or total,
            trackers=job.context.compute.trackers,
        )
        metrics = opened.enter_context(writer)
    return StepReport(
        type(job.task.method).__name__,
        job.start_seeds,
        logging.progress,
        metrics,
        images=images,
        losses=losses or (),
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
    stages = plan_stages(job)
    check_side_by_side(stages)
    samples = sample_features(job)
    began = time.monotonic()
    start = stack_runs([jax.device_get(job.task.init(run.start_seed)) for run in job.runs])
    if isinstance(method, FeatureMethod):
        start = _each_run(method.support, start, samples)
    host = time.monotonic() - began
    if not stages:
        return TrainResult(start, training_seconds=_training_seconds(job, stages, samples, host))
    # Stage by stage. One whose checkpoints have its last step makes none.
    results = list[TrainResult]()
    learnables = _next_stage(job, 0, start, None)
    for number, stage in enumerate(stages):
        results.append(train(stage, learnables))
        learnables = results[-1].learnables
        text = _stage_texts(stage, learnables) if stage is not stages[-1] else None
        learnables = _next_stage(job, number + 1, learnables, text)
    if isinstance(method, FeatureMethod) and method.finish is not None:
        began = time.monotonic()
        learnables = _each_run(method.finish, learnables, samples)
        host += time.monotonic() - began
    seconds = sum(result.seconds for result in results)
    waiting = sum(result.waiting_share * result.seconds for result in results)
    return TrainResult(
        learnables=learnables,
        losses=results[-1].losses,
        steps=sum(result.steps for result in results),
        seconds=seconds,
        waiting_share=waiting / max(seconds, 1e-9),
        skipped=tuple(max(counts) for counts in zip(*(result.skipped for result in results), strict=True)),
        training_seconds=_training_seconds(job, stages, samples, host),
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
    if method.next_stage is None:
        return learnables
    starts = [
        method.next_stage(stage, select_run(learnables, run), None if text is None else text[run])
        for run in range(len(job.runs))
    ]
    return stack_runs(jax.device_get(starts))


def _stage_texts(stage: TrainJob, learnables: Learnables) -> np.ndarray:
    """The texts under each run's learnables: `[R, S, C, d]`."""
    context = stage.context
    runs = len(stage.runs)
    static, inputs = make_evaluation(stage.task, context.params, learnables, runs=runs, mesh=context.mesh)
    if isinstance(inputs.text, jax.Array):  # no learnable changes it
        features = jnp.broadcast_to(inputs.text, (runs, *inputs.text.shape))
    else:
        features = text_features(static, inputs)
    return np.asarray(meshes.device_get(stage.task.classifier.split_by_template(features)))


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
