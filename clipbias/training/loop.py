"""The training loop: batches, step, metrics, checkpoints, and the notice to stop.

Independent runs of one task train side by side in one program; every array of theirs has a leading axis `R`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.workers import Workers
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.batches import RunBatches
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.features import FeatureBatches
from clipbias.training.memory import MemoryPlan, explain_exhaustion
from clipbias.training.metrics import MetricWriter, StepReport
from clipbias.training.profile import StepProfile
from clipbias.training.progress import Progress
from clipbias.training.step import train_step
from clipbias.training.step_inputs import StepScalars, StepStatic, init_state, place_inputs
from clipbias.tuning import Task
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.learnables import with_constants
from clipbias.tuning.method import Learnables
from clipbias.tuning.recipe import Recipe

# Steps whose time decides how often checkpoints are saved. The first one compiles and does not count.
_TIMED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs of a group: its training images, its seed, and its learning rate if not the recipe's."""

    train: Split | Images
    seed: int
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
      learnables: of all runs, leading axis `R`, on the mesh.
      losses: the last step's loss of each run.
      steps: steps in all.
      seconds: wall time in this process.
      waiting_share: share of the steps' time in which the devices waited for images.
      skipped: of each run, how many training images could not be read and were masked.
    """

    learnables: Learnables
    losses: list[float]
    steps: int
    seconds: float
    waiting_share: float
    skipped: list[int]


@dataclasses.dataclass(frozen=True)
class Logging:
    """Where a training reports, and how often it is saved. Nothing here changes a number.

    Attributes:
      checkpoints: folder of its checkpoints; `None` saves none.
      checkpoint_seconds: time between two checkpoints, about; 0 saves after every step.
      metrics: folder of `metrics.jsonl`; `None` writes none.
      trackers: other programs that get the metrics, see `trackers`.
      profile: whether a few steps are traced into the folder of the metrics.
      progress: shows every step.
      steps_before: steps of earlier stages, from which the metrics count on.
      steps_in_all: steps of all stages together; 0 where this is the only one.
    """

    checkpoints: Path | None = None
    checkpoint_seconds: float = 60.0
    metrics: Path | None = None
    trackers: tuple[str, ...] = ()
    profile: bool = False
    progress: Progress | None = None
    steps_before: int = 0
    steps_in_all: int = 0


def train(
    task: Task,
    params: Params,
    runs: Sequence[Run],
    recipe: Recipe,
    start: Learnables,
    *,
    mesh: Mesh,
    plan: MemoryPlan | None = None,
    features: Sequence[np.ndarray] | None = None,
    readable: Sequence[np.ndarray] | None = None,
    on_image_error: str = "raise",
    workers: Workers | None = None,
    logging: Logging | None = None,
) -> Trained:
    """Trains the runs of a task to the end, from the latest checkpoint if there is one.

    Args:
      task: a method bound to classes.
      params: the frozen weights on the mesh.
      runs: with equally many steps.
      recipe: optimiser and schedule.
      start: the learnables before the first step, leading axis `R`, on the host.
      mesh: the devices.
      plan: how a step fits the memory.
      features, readable: of each run, what its epochs take in place of images (`FeatureBatches`).
      on_image_error: "raise", or "skip" to mask images that cannot be read.
      workers: threads that decode images; `None` for its own.
      logging: reports and checkpoints; `None` keeps nothing.

    Raises:
      ClipbiasError: the loss is not finite, or the device's memory is exhausted. The last checkpoint stays.
      hosts.Stopped: a notice to stop came. The state is saved.
    """
    began, logging = time.monotonic(), logging or Logging()
    images = [Images.of(run.train) for run in runs]
    examples, rows = len(images[0]), rows_per_step(images, recipe)
    total, per_epoch = recipe.total_steps(examples), recipe.steps_per_epoch(examples)
    seeds, count = [run.seed for run in runs], meshes.padded(mesh, len(runs))
    rates = np.stack([recipe.at(run.learning_rate).step_rates(examples) for run in runs], axis=1)
    weights = task.method.average(recipe.total_epochs(examples))

    step, fresh, losses = 0, init_state(task.method, recipe, start), None
    checkpoints = None if logging.checkpoints is None else Checkpoints(logging.checkpoints)
    if checkpoints is not None and (restored := checkpoints.restore(fresh)) is not None:
        step, fresh, losses = restored
    state = meshes.device_put(mesh, meshes.pad(fresh, count), meshes.RUN)
    inputs = place_inputs(mesh, task, params, meshes.pad(start, count), meshes.pad(np.asarray(seeds, np.int32), count))

    static = StepStatic(task.classifier, task.clip.preprocessing, recipe, mesh, 1 if plan is None else plan.parts)

    def place(values: np.ndarray) -> jax.Array:
        return meshes.device_put(mesh, meshes.pad(values.astype(np.float32), count), meshes.RUN)

    with contextlib.ExitStack() as opened:
        if checkpoints is not None:
            opened.callback(checkpoints.close)
        batches: RunBatches | FeatureBatches
        if features is None:
            how: dict[str, Any] = dict(image_size=task.clip.preprocessing.side, start_step=step)
            how |= dict(workers=Workers.of(workers), on_error=on_image_error)
            batches = RunBatches(images, seeds, recipe, mesh, **how)
        else:
            sampling, labels = sampling_of(task.method), [one.labels for one in images]
            pooled = sampling is not None and sampling.training == "pooled"
            how = dict(pooled=pooled, start_step=step, readable=readable)
            batches = FeatureBatches(features, labels, seeds, recipe, mesh, **how)
        opened.callback(batches.close)
        report = _report(opened, logging, task, seeds, rows, step, total, losses, batches, plan)
        profile = _profile(opened, logging, step, total)
        interval = _Interval(logging.checkpoint_seconds)
        with explain_exhaustion(_advice(plan)):
            while step < total:
                # Epochs end with the learnables that enter the average.
                weight = None
                if weights is not None:
                    ends = step + 1 == total or not (step + 1) % per_epoch
                    weight = meshes.replicate(mesh, np.float32(weights[step // per_epoch] if ends else 0))
                profile.before(step)
                batch = next(batches)
                state, values = train_step(static, inputs, state, batch, StepScalars(place(rates[step]), weight))
                del batch  # the device keeps what it still computes from, and the next one needs the room
                batches.computes(values["loss"])
                profile.after(step, values)
                step += 1
                report.step(logging.steps_before + step, values, rates[step - 1])
                stops, ends_stage = hosts.stops(), step == total < logging.steps_in_all - logging.steps_before
                if checkpoints is not None and (stops or ends_stage or interval.is_over(last=step == total)):
                    report.catch_up()  # nothing is saved after a loss that is not finite
                    checkpoints.save(step, meshes.unpad(mesh, state, len(runs)), report.losses)
                if stops:
                    if checkpoints is not None:
                        checkpoints.wait()
                    whole = logging.steps_in_all or total
                    raise hosts.Stopped(
                        f"stopped at step {logging.steps_before + step} of {whole}; the same command continues."
                    )
            report.catch_up()
    learned = meshes.unpad(mesh, state.learnables if state.average is None else state.average, len(runs))
    seconds = time.monotonic() - began
    skipped = _skipped(images) if readable is None else [int((~one).sum()) for one in readable]
    return Trained(
        *(with_constants(learned, start), report.losses, total, seconds, batches.waiting_share), skipped=skipped
    )


def _skipped(images: Sequence[Images]) -> list[int]:
    """How many images of each run some process could not read."""
    names = hosts.gather([sorted(one.unreadable) for one in images])
    return [len({name for each in names for name in each[run]}) for run in range(len(images))]


def _report(
    opened: contextlib.ExitStack,
    logging: Logging,
    task: Task,
    seeds: Sequence[int],
    rows: int,
    step: int,
    total: int,
    losses: Sequence[float] | None,
    batches: RunBatches | FeatureBatches,
    plan: MemoryPlan | None,
) -> StepReport:
    """Progress and metrics of the steps that are left; the metrics of the others stay."""
    if logging.progress is not None:
        opened.callback(logging.progress.close)
        logging.progress.start(total, done=step)
        if plan is not None:
            logging.progress.say(f"memory: {plan}")
    metrics = None
    if logging.metrics is not None and step < total:
        writer = MetricWriter(
            logging.metrics,
            start_step=logging.steps_before + step + 1,
            steps=logging.steps_in_all or total,
            trackers=logging.trackers,
        )
        metrics = opened.enter_context(writer)
    waiting: Callable[[], float] | None = None
    if isinstance(batches, RunBatches):
        waiting = lambda: batches.waiting_share  # noqa: E731 (asked at each step)
    name = type(task.method).__name__
    return StepReport(name, seeds, logging.progress, metrics, images=rows * len(seeds), losses=losses, waiting=waiting)


def _profile(opened: contextlib.ExitStack, logging: Logging, step: int, total: int) -> Any:
    if not logging.profile or logging.metrics is None:
        return _NoProfile()
    profile = StepProfile(logging.metrics, first=step, total=total)
    opened.callback(profile.close)
    return profile


class _NoProfile:
    def before(self, step: int) -> None:
        """Nothing is traced."""

    def after(self, step: int, result: Any) -> None:
        """Nothing is traced."""


class _Interval:
    """When to save: after so many steps, a number that all processes agree on once, since their clocks differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._steps, self._began = seconds, 0, 0.0
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
    return (
        f"{needs}lower --config.batch_size or --config.micro_batch, raise --config.class_chunks, or set "
        "--config.remat=tokens."
    )


def rows_per_step(images: Sequence[Images | Split], recipe: Recipe) -> int:
    """Images of a step of each run. Raises `ClipbiasError` where the runs differ in their steps."""
    shapes = {(recipe.total_steps(len(one)), min(len(one), recipe.batch_size)) for one in images}
    if len(shapes) > 1:
        raise ClipbiasError("the runs of one group have different numbers of steps; train them separately.")
    return shapes.pop()[1]
