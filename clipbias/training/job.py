"""Runs that train side by side in one program, and all that their training and their scores depend on."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from clipbias.data import Split
from clipbias.data.images import Images, check_readable
from clipbias.data.protocols import EvalProtocol
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.device import AUTO
from clipbias.training.memory import MemoryPlan, StepShape, plan_step
from clipbias.training.progress import Progress
from clipbias.training.teacher import Teacher
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables, sampling_of
from clipbias.tuning.recipe import Recipe


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
    """Where a training reports, and how often it is saved. Nothing here changes a number.

    Attributes:
      checkpoint_seconds: time between two checkpoints, about; 0 saves after every step.
      keeps_last: whether the last step is saved however short the training was, so that the same job ends at once when
        it comes again.
      steps_before, total_steps: of earlier stages, and of all stages; `None` where this stage is the only one.
      ends_on_failure: whether a loss that is not finite ends the training; else that run goes on beside the others.
    """

    checkpoints: Path | None = None
    checkpoint_seconds: float = 60.0
    keeps_last: bool = False
    metrics: Path | None = None
    trackers: tuple[str, ...] = ()
    profile: bool = False
    progress: Progress | None = None
    steps_before: int = 0
    total_steps: int | None = None
    ends_on_failure: bool = True

    def say(self, line: str) -> None:
        if self.progress is not None:
            self.progress.say(line)

    def at_work(self, stage: str) -> None:
        if self.progress is not None:
            self.progress.at_work(stage)


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
    shots: int | None = None
    teacher: Teacher | None = None
    logging: Logging = Logging()
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
        job.logging.say(f"{epochs}, {counted(recipe.total_steps(job.examples), 'step')}")
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
        job.logging.at_work("compiling a step")
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
