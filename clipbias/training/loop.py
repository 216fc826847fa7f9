"""Trains a job, the runs that share a program: plans its stages, collects features, trains stage by stage, finishes.

A stage repeats: batch, step, metrics, checkpoint, until its last step or a notice to stop.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
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
from clipbias.training import placement
from clipbias.training.batches import FeatureBatches, RunBatches
from clipbias.training.checkpoints import Checkpoints
from clipbias.training.context import SweepContext
from clipbias.training.device import AUTO_REMAT, explain_exhaustion
from clipbias.training.forward import EvalInputs, EvalStatic, make_evaluation, text_features
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
    """Run of a job: a spec in memory. A learning rate of `None` is the recipe's.

    The start seed decides order and augmentation of images, and the initial learnables, unless `start` has them.
    """

    images: Images
    start_seed: int
    protocol: EvalProtocol
    learning_rate: float | None = None
    start: Learnables | None = None


@dataclasses.dataclass(frozen=True)
class RunOutputs:
    """Checkpoints, metrics and progress of a job. Nothing here changes a number.

    Attributes:
      checkpoints, metrics: folders; `None` saves nothing.
      keeps_last: whether the last step is saved too, so that the same job ends at once next time.
      steps_before, total_steps: steps of earlier stages and of all stages.
      ends_on_failure: whether a loss that is not finite ends the training; otherwise the other runs go on.
    """

    checkpoints: Path | None = None
    keeps_last: bool = False
    metrics: Path | None = None
    progress: Progress = dataclasses.field(default_factory=lambda: Progress(shown=False))
    steps_before: int = 0
    total_steps: int | None = None
    ends_on_failure: bool = True

    def below(self, folder: str, **changes: Any) -> "RunOutputs":
        """Returns the same with checkpoints in a folder of their own below, and other changes."""
        # Jobs that share a folder of checkpoints would take each other's steps for their own.
        checkpoints = None if self.checkpoints is None else self.checkpoints / folder
        return dataclasses.replace(self, checkpoints=checkpoints, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainJob:
    """Runs that train side by side in one program, bound to model, images and devices. Without recipe it makes no step.

    A *stage*, a training with its own optimiser, is a job too (`plan_stages`). A teacher's predictions replace labels.
    """

    context: SweepContext
    task: Task
    recipe: Recipe | None
    runs: tuple[Run, ...]
    teacher: Tuned | None = None
    outputs: RunOutputs = dataclasses.field(default_factory=RunOutputs)
    plan: MemoryPlan | None = None

    @property
    def protocol(self) -> EvalProtocol:
        # Of any run: all share evaluations and classes of training.
        return self.runs[0].protocol

    @property
    def examples(self) -> int:
        """Number of training images of each run."""
        return len(self.runs[0].images)

    @property
    def start_seeds(self) -> list[int]:
        return [run.start_seed for run in self.runs]

    @property
    def run_axis(self) -> placement.RunAxis:
        return placement.RunAxis(self.context.mesh, len(self.runs))

    @property
    def training(self) -> Recipe:
        assert self.recipe is not None, "the job makes no step"
        return self.recipe

    @property
    def steps(self) -> int:
        return self.training.total_steps(self.examples)

    @property
    def rows(self) -> int:
        """Images of a step in each run. Raises `ClipbiasError` where the runs differ in their steps."""
        # Side by side, all runs make a step at once: none may end before another.
        shapes = {
            (self.training.total_steps(len(run.images)), min(len(run.images), self.training.batch_size))
            for run in self.runs
        }
        if len(shapes) > 1:
            raise ClipbiasError("the runs of one group have different numbers of steps; train them separately.")
        return shapes.pop()[1]

    def evaluation(self, task: Task, learnables: Learnables) -> tuple[EvalStatic, EvalInputs]:
        """Makes the arguments of an evaluation of all runs; `learnables [R, …]` lie on the host."""
        axis = self.run_axis
        return make_evaluation(task, self.context.params, axis.pad(learnables), runs=axis.padded, mesh=axis.mesh)

    @property
    def step_shape(self) -> StepShape:
        return StepShape(self.rows, self.run_axis.padded, self.context.mesh, self.examples, self.teacher is not None)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of a job, or of a stage: learnables `[R, …]` on the host, and each run's loss at the last step, in nats.

    `seconds` are the wall time of the steps in this process, of which devices waited for images the `waiting_share`;
    `training_seconds` the time of each run, earlier processes included (`progress.step_seconds`).
    """

    learnables: Learnables
    losses: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    waiting_share: float = 0.0
    training_seconds: tuple[float, ...] = ()


def plan_stages(job: TrainJob) -> tuple[TrainJob, ...]:
    """Returns the stages of a job, each with its task, recipe and memory plan; none where no step is made."""
    method = job.task.method
    if job.recipe is None or not jax.tree.leaves(job.task.shapes):
        return ()
    recipe = job.recipe.with_epochs(job.examples)
    if recipe != job.recipe:
        epochs = counted(recipe.total_epochs(job.examples), "epoch")
        job.outputs.progress.say(f"{epochs}, {counted(recipe.total_steps(job.examples), 'step')}")
    methods = method.stages(recipe)
    # Progress and metrics count the steps of all stages in one row.
    steps = [stage.total_steps(job.examples) for _, stage in methods]
    stages = []
    for number, (stage_method, stage_recipe) in enumerate(methods):
        outputs = job.outputs.below(f"stage{number}", steps_before=sum(steps[:number]), total_steps=sum(steps))
        # `with_method` would encode the texts again, which takes seconds for a thousand classes.
        task = job.task if stage_method is method else job.task.with_method(stage_method)
        stage = dataclasses.replace(job, task=task, recipe=stage_recipe, outputs=outputs)
        job.outputs.progress.at_work("compiling a step")
        plan = plan_step(task, stage_recipe, stage.step_shape, job.context.compute)
        stages.append(dataclasses.replace(stage, task=plan.apply(task), plan=plan))
    return tuple(stages)


class NotSideBySide(ClipbiasError):
    """Several learning rates whose step fits the memory only by slower settings: they train faster one by one."""


def check_images(job: TrainJob, others: Sequence[Split] = ()) -> None:
    """Decodes the training images of a job, then others that it reads later, before its first step.

    Raises `UnreadableImage` with the names of the unreadable ones. Where these are skipped, notes those that train.
    """
    # A broken image must not end a run after hours of training, in its evaluation.
    if not job.task.method.uses_images:
        return
    skips = job.context.reading.on_error == "skip"
    # Decoded images are kept for the steps. Augmentation crops from the whole image; only batches of images as they are
    # evaluated need no more than the size of the model.
    whole = job.recipe is None or job.recipe.augment or sampling_of(job.task.method) is not None
    images = [*(run.images for run in job.runs), *map(Images, () if skips else others)]
    resizing = None if whole else job.task.clip.preprocessing.resizing
    check_readable(images, resizing, job.context.reading.workers, job.context.checked, skip=skips)


def validation_images(job: TrainJob) -> list[Split]:
    """Returns the validation images of each run. Raises `ClipbiasError` where there are none."""
    # Drawing them takes seconds for a large dataset, and runs of one seed share their protocol.
    by_protocol = {id(run.protocol): run.protocol for run in job.runs}
    splits = {key: protocol.validation() for key, protocol in by_protocol.items()}
    images = []
    for split in (splits[id(run.protocol)] for run in job.runs):
        if split is None or not len(split):
            raise ClipbiasError(
                f"{job.protocol.source.name}: there are no validation images under the protocol "
                f"{job.protocol.protocol}, so no learning rate can be selected; leave --config.learning_rates empty, "
                "or test all of them: --config.choose=none."
            )
        images.append(split)
    return images


# Steps whose time decides the interval of checkpoints. The first step compiles and does not count.
_TIMED_STEPS = 3

Batches = RunBatches | FeatureBatches | TaughtBatches


def train(job: TrainJob, start: Learnables) -> TrainResult:
    """Trains the runs of a stage to the end, from the latest checkpoint or from learnables `[R, …]` on the host.

    Raises `ClipbiasError` for a loss that is not finite or exhausted memory, `hosts.Stopped` after a notice to stop.
    """
    began = time.monotonic()
    mesh = job.context.mesh
    axis = job.run_axis
    outputs = job.outputs
    total = job.steps
    static = StepStatic.of(job.task, job.training, mesh)
    rates, weights = _step_numbers(job)
    # The last step is saved only where somebody reads it: a later stage that continues, or the same job again.
    keeps_last = outputs.keeps_last or total < (outputs.total_steps or 0) - outputs.steps_before
    needs = "" if job.plan is None else f"a step needs {job.plan}: "
    advice = f"{needs}lower --config.batch_size, raise --config.class_chunks, or set --config.remat=tokens."
    with contextlib.ExitStack() as opened:
        # A checkpoint has the shapes of the runs without padding, so that it restores onto any mesh: padding follows.
        step, losses, checkpoints = 0, None, None
        state = init_state(job.task.method, job.training, start)
        if outputs.checkpoints is not None:
            checkpoints = Checkpoints(outputs.checkpoints)
            opened.callback(checkpoints.close)
            if (restored := checkpoints.restore(state)) is not None:
                step, state, losses = restored
        state = axis.place(state)
        seeds = axis.pad(np.asarray(job.start_seeds, np.int32))
        inputs = place_inputs(mesh, job.task, job.context.params, axis.pad(start), seeds)
        # Batches begin at the restored step: order and augmentation are functions of seed, epoch and image.
        batches = _open_batches(opened, job, step)
        report = _open_report(opened, job, step, losses, batches)
        is_traced = job.context.compute.profile == "steps"
        profile = StepProfile(outputs.metrics if is_traced else None, first=step, total=total)
        opened.callback(profile.close)
        interval = _Interval(job.context.compute.checkpoint_seconds)
        first = step
        with explain_exhaustion(advice):
            while step < total:
                profile.before(step)
                batch = next(batches)
                scalars = StepScalars(
                    learning_rate=axis.place(rates[step].astype(np.float32)),
                    weight=None if weights is None else placement.replicate(mesh, weights[step]),
                )
                # Returns at once, with results that the device still computes. The old state's memory is donated:
                # whoever reads it, as a checkpoint does, takes the new one.
                state, metrics = train_step(static, inputs, state, batch, scalars)
                del batch  # the device keeps what it still reads; this reference would hold a second batch
                batches.computes(metrics["loss"])
                profile.after(step, metrics)
                step += 1
                # The report reads the metrics of the step before: reading these would wait for the device, which then
                # would wait for the host to dispatch the next step.
                report.step(outputs.steps_before + step, metrics, rates[step - 1])
                # The first step includes its compilation, which may take minutes.
                if step == first + 1:
                    outputs.progress.at_work("training")
                # All processes ask after every step, or they would not agree on the step at which they stop.
                stops = hosts.stops()
                last = step == total
                if checkpoints is not None and (stops or (last and keeps_last) or interval.is_over(last=last)):
                    # First the report, which ends the training at a loss that is not finite: the checkpoint before is
                    # the last good one and must not be replaced.
                    report.catch_up()
                    checkpoints.save(step, axis.unpad(state), report.losses)
                if stops:
                    if checkpoints is not None:
                        checkpoints.wait()
                    raise hosts.Stopped(
                        f"stopped at step {outputs.steps_before + step} of {outputs.total_steps or total}; the same "
                        "command continues."
                    )
            report.catch_up()
    # PromptSRC evaluates an average of its epochs, all other methods the last step.
    learnables = axis.unpad(state.learnables if state.average is None else state.average)
    return TrainResult(
        learnables=with_constants(placement.device_get(learnables), start),
        losses=tuple(report.losses),
        steps=total,
        seconds=time.monotonic() - began,
        waiting_share=batches.waiting_share,
    )


def _step_numbers(job: TrainJob) -> tuple[np.ndarray, np.ndarray | None]:
    """Learning rates `[steps, R]`, float64, and weights of the learnables in their average `[steps]`, or `None`."""
    # On the host, in float64, and rounded once: in a float32 step each operation of a schedule would be rounded.
    recipe = job.training
    examples = job.examples
    rates = np.stack([recipe.with_learning_rate(run.learning_rate).step_rates(examples) for run in job.runs], axis=1)
    of_epochs = job.task.method.average(recipe.total_epochs(examples))
    if of_epochs is None:
        return rates, None
    # `of_epochs` weighs the learnables at the ends of epochs, as PromptSRC averages them; all other steps get 0.
    per_epoch = recipe.steps_per_epoch(examples)
    done = np.arange(1, job.steps + 1)
    ends = (done % per_epoch == 0) | (done == job.steps)
    return rates, np.where(ends, np.asarray(of_epochs)[(done - 1) // per_epoch], 0).astype(np.float32)


def _open_batches(opened: contextlib.ExitStack, job: TrainJob, start_step: int) -> Batches:
    context = job.context
    sampling = sampling_of(job.task.method)
    batches: Batches
    images, seeds, recipe = [run.images for run in job.runs], job.start_seeds, job.training
    resizing = job.task.clip.preprocessing.resizing
    if job.teacher is not None:
        batches = TaughtBatches(job.teacher, images, seeds, recipe, context, resizing=resizing, start_step=start_step)
    elif sampling is None:
        batches = RunBatches(images, seeds, recipe, context.reading, resizing=resizing, start_step=start_step)
    else:
        sources = [context.features(run.images, run.start_seed, sampling) for run in job.runs]
        epochs = recipe.total_epochs(job.examples)
        batches = FeatureBatches(
            [source.training(sampling, epochs) for source in sources],
            [run.images.labels for run in job.runs],
            seeds,
            recipe,
            context.mesh,
            pooled=sampling.training == "pooled",
            start_step=start_step,
            readable=[source.readable for source in sources],
        )
    opened.callback(batches.close)
    return batches


def _open_report(
    opened: contextlib.ExitStack, job: TrainJob, step: int, losses: Sequence[float] | None, batches: Batches
) -> StepReport:
    # For the remaining steps: lines of earlier ones stay in the file.
    outputs = job.outputs
    total = job.steps
    outputs.progress.start(outputs.total_steps or total, done=outputs.steps_before + step)
    if job.plan is not None:
        outputs.progress.say(f"memory: {job.plan}")
    metrics = None
    if outputs.metrics is not None and step < total:
        writer = MetricWriter(
            outputs.metrics,
            start_step=outputs.steps_before + step + 1,
            steps=outputs.total_steps or total,
            trackers=job.context.compute.trackers,
        )
        metrics = opened.enter_context(writer)
    return StepReport(
        type(job.task.method).__name__,
        job.start_seeds,
        outputs.progress,
        metrics,
        images=job.rows * len(job.runs),
        losses=losses or (),
        waiting=(lambda: batches.waiting_share) if not isinstance(batches, FeatureBatches) else None,
        ends_on_failure=outputs.ends_on_failure,
    )


class _Interval:
    """Interval of checkpoints in steps. All processes agree on it once, since their clocks differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps = 0
        self._began = 0.0
        self._every = 0 if seconds else 1

    def is_over(self, *, last: bool) -> bool:
        """Whether to save after this step; called after every step. The `last` step is saved after long trainings."""
        # Steps, not seconds, decide: processes whose clocks differ would save at different steps, and wait forever.
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


def train_job(job: TrainJob) -> TrainResult:
    """Trains a job: its features, its stages one after another, and what the method makes of them in the end."""
    method = job.task.method
    if job.teacher is not None:
        check_student(job.task, job.teacher)
    # Whatever can fail does so here, before minutes of training: broken images, then memory.
    check_images(job)
    stages = plan_stages(job)
    # One learning rate alone needs less memory and may keep the fastest settings, unless the user chose others.
    is_open = (job.context.compute.remat, job.context.compute.class_chunks) == (AUTO_REMAT, None)
    is_slow = any(stage.plan is not None and not stage.plan.is_fastest for stage in stages)
    if is_open and is_slow and len({run.learning_rate for run in job.runs}) > 1:
        raise NotSideBySide("the learning rates do not fit the memory side by side.")
    samples = sample_features(job)
    began = time.monotonic()
    starts = [job.task.init(run.start_seed) if run.start is None else run.start for run in job.runs]
    start = stack_runs(jax.device_get(starts))
    if isinstance(method, FeatureMethod):
        start = _each_run(method.support, start, samples)
    host = time.monotonic() - began
    if not stages:
        return TrainResult(start, training_seconds=_training_seconds(job, stages, samples, host))
    # A stage that had ended restores its last step and makes none, so an interrupted job goes on in its stage.
    results = list[TrainResult]()
    no_texts = [None for _ in job.runs]

    def next_stage(number: int, learnables: Learnables, texts: Iterable[np.ndarray | None]) -> Learnables:
        if method.next_stage is None:
            return learnables
        return _each_run(functools.partial(method.next_stage, number), learnables, texts)

    learnables = next_stage(0, start, no_texts)
    for number, stage in enumerate(stages, start=1):
        results.append(train(stage, learnables))
        texts = no_texts if stage is stages[-1] else _stage_texts(stage, results[-1].learnables)
        learnables = next_stage(number, results[-1].learnables, texts)
    if isinstance(method, FeatureMethod) and method.finish is not None:
        # Such as Tip-Adapter-F's search of α and β with the trained keys, on the same features.
        began = time.monotonic()
        learnables = _each_run(method.finish, learnables, samples)
        host += time.monotonic() - began
    seconds = sum(result.seconds for result in results)
    # By time: a share of a short stage says little of the whole.
    waiting = sum(result.waiting_share * result.seconds for result in results)
    return TrainResult(
        learnables=learnables,
        losses=results[-1].losses,
        steps=sum(result.steps for result in results),
        seconds=seconds,
        waiting_share=waiting / max(seconds, 1e-9),
        training_seconds=_training_seconds(job, stages, samples, host),
    )


def sample_features(job: TrainJob) -> list[Samples]:
    """Collects features of each run's training images, and of validation images where the method searches on them."""
    context = job.context
    sampling = sampling_of(job.task.method)
    if sampling is None:
        return []
    text = place_text(context.mesh, job.task, context.params)
    assert isinstance(text, jax.Array), "a method on features of images leaves the text tower alone"
    texts = np.asarray(job.task.classifier.split_by_template(text))
    # In float32, as heads compute it: a search on the host must see the logits that are evaluated.
    scale = float(np.exp(np.float32(context.clip.params["logit_scale"])))
    samples = []
    for run in job.runs:
        validation = validation_labels = None
        split = run.protocol.validation() if sampling.validation else None
        if split is not None:
            source = context.features(Images(split), run.start_seed, sampling)
            validation = source.plain[0][source.readable]
            validation_labels = split.labels[source.readable]
        source = context.features(run.images, run.start_seed, sampling)
        # Before the labels: computing the features finds out which images are `readable`.
        features = source.support(sampling)
        of_run = Samples(
            features=features[:, source.readable],
            labels=np.asarray(run.images.labels)[source.readable],
            text=texts,
            scale=scale,
            validation=validation,
            validation_labels=validation_labels,
            seed=run.start_seed,
        )
        samples.append(of_run)
    return samples


def _each_run(hook: Callable[..., Learnables], learnables: Learnables, of_runs: Iterable[Any]) -> Learnables:
    results = [hook(select_run(learnables, run), of_run) for run, of_run in enumerate(of_runs)]
    return stack_runs(jax.device_get(results))


def _stage_texts(stage: TrainJob, learnables: Learnables) -> np.ndarray:
    """Returns the text features under each run's learnables, `[R, S, C, d]`."""
    # The next stage starts from these features (2SFS): of each run, also where all runs share frozen ones.
    context = stage.context
    runs = len(stage.runs)
    static, inputs = make_evaluation(stage.task, context.params, learnables, runs=runs, mesh=context.mesh)
    if isinstance(inputs.text, jax.Array):
        features = jnp.broadcast_to(inputs.text, (runs, *inputs.text.shape))
    else:
        features = text_features(static, inputs)
    return np.asarray(placement.device_get(stage.task.classifier.split_by_template(features)))


def _training_seconds(
    job: TrainJob, stages: Sequence[TrainJob], samples: Sequence[Samples], host: float
) -> tuple[float, ...]:
    """Seconds of each run: its features, and an equal share of the steps and of the method's `host` computations."""
    runs = len(job.runs)
    folder = job.outputs.metrics
    sampling = sampling_of(job.task.method)
    steps = 0.0 if folder is None else step_seconds(folder / METRICS, [stage.steps for stage in stages])
    if sampling is None:
        return (steps / runs,) * runs
    # Features are kept and shared by methods. Each method is charged what they would cost it alone; otherwise its time
    # would depend on the methods before it.
    passes = max(sampling.passes, 1)
    if stages and sampling.training == "fresh":
        passes += stages[0].training.total_epochs(job.examples)
    seconds = []
    for run, of_run in zip(job.runs, samples, strict=True):
        count = passes * len(of_run.labels) + (0 if of_run.validation is None else len(of_run.validation))
        features = job.context.features(run.images, run.start_seed, sampling).seconds(count)
        seconds.append(features + (steps + host) / runs)
    return tuple(seconds)
