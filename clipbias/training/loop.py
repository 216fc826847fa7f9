"""The training loop: independent runs of one task side by side in one program, saved and continued."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES
from clipbias.data.workers import Workers
from clipbias.errors import ClipbiasError
from clipbias.interruption import Interrupted, noted
from clipbias.training import mesh as meshes
from clipbias.training import processes
from clipbias.training.agreement import Pace
from clipbias.training.batches import RunBatches
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.features import FeatureBatches
from clipbias.training.metrics import MetricWriter, StepReport
from clipbias.training.plan import StepPlan, explain_exhaustion
from clipbias.training.profile import StepProfile
from clipbias.training.progress import Progress
from clipbias.training.step import init_state, place_given, train_step
from clipbias.training.trackers import AUTO
from clipbias.tuning import Samples, Task
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import one_run, stack_runs, with_constants
from clipbias.tuning.method import Learnables
from clipbias.tuning.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells one run from those beside it: images, a seed, and a learning rate where it is not the recipe's."""

    train: Split | Images
    seed: int
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training ends with.

    Attributes:
      learnables: of all runs, leading axis `R`, on the mesh.
      losses: the last step's loss of each run.
      seconds: wall time spent in this process.
      steps: steps done in all.
      waiting_share: share of the steps' time in which there was nothing to do but to wait for images.
    """

    learnables: Learnables
    losses: list[float]
    seconds: float
    steps: int
    waiting_share: float


def initial_learnables(task: Task, runs: Sequence[Run], samples: Sequence[Samples] | None = None) -> Learnables:
    """The learnables of all runs before the first step, stacked on a leading axis `R`, on the host.

    Args:
      task: a method bound to classes.
      runs: the runs.
      samples: of each run, where the method makes something of its training images.
    """
    start = stack_runs([jax.device_get(task.init(run.seed)) for run in runs])
    if samples is None or not isinstance(task.method, FeatureMethod):
        return start
    return each_run(task.method.support, start, samples)


def each_run(
    hook: Callable[[Learnables, Samples], Learnables], learnables: Learnables, samples: Sequence[Samples]
) -> Learnables:
    """A method's hook called with the learnables and samples of each run, its results stacked again."""
    return stack_runs([jax.device_get(hook(one_run(learnables, run), one)) for run, one in enumerate(samples)])


@processes.agreed()
def train(
    task: Task,
    params: Params,
    runs: Sequence[Run],
    recipe: Recipe,
    *,
    mesh: Mesh,
    start: Learnables | None = None,
    features: Sequence[np.ndarray] | None = None,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    checkpoint_seconds: float = 60.0,
    progress: Progress | None = None,
    metrics_folder: Path | None = None,
    trackers: Sequence[str] = (AUTO,),
    profile: bool = False,
    plan: StepPlan | None = None,
    workers: Workers | None = None,
    before: int = 0,
    whole: int = 0,
) -> Trained:
    """Trains the runs of a task to the end, from the latest checkpoint if there is one.

    Args:
      task: a method bound to classes.
      params: the frozen weights on the mesh.
      runs: with equally many steps.
      recipe: optimiser and schedule.
      mesh: where to compute.
      start: the learnables before the first step, leading axis `R`; `None` for the method's `init`.
      features: of each run, what its epochs take instead of images, see `FeatureBatches`.
      folder: where checkpoints lie; `None` keeps none.
      identity: what must be equal for a checkpoint to be continued; `earlier` are other ways in which earlier versions
        wrote the same.
      checkpoint_seconds: least time between two checkpoints; 0 saves after every step (with several processes, which
        agree on it a step later, after every second).
      progress: told about every step.
      metrics_folder: where `metrics.jsonl` goes.
      trackers: who else is told the metrics, see `trackers.Trackers`.
      profile: whether a few steps are traced into that folder, too (`profile.StepProfile`).
      plan: how the step runs and what it was planned to need, which is said before the first step.
      workers: threads that decode, which others may share; `None` for its own.
      before: steps of earlier stages, from which the metrics count on.
      whole: steps of all stages together; 0 where this is the only one.

    Raises:
      ClipbiasError: the loss is not finite, or the device's memory is exhausted; the last good checkpoint stays.
      Interrupted: a notice to stop came; the state is saved.
    """
    began = time.monotonic()
    opened_splits = {id(run.train): Images.of(run.train, DEFAULT_CACHE_BYTES // len(runs)) for run in runs}
    images = [opened_splits[id(run.train)] for run in runs]
    examples, seeds = len(images[0]), [run.seed for run in runs]
    rows, total, per_epoch = (
        rows_per_step(images, recipe),
        recipe.total_steps(examples),
        recipe.steps_per_epoch(examples),
    )
    rates = np.stack([recipe.at(run.learning_rate).step_rates(examples) for run in runs], axis=1)
    count = meshes.filled(mesh, len(runs))
    weights = task.method.average(recipe.total_epochs(examples))
    if start is None:
        start = initial_learnables(task, runs)
    step, fresh, losses = 0, init_state(task.method, recipe, start), None
    state = meshes.place(mesh, meshes.fill(fresh, count), meshes.RUN)
    given = place_given(mesh, task, params, meshes.fill(start, count), meshes.fill(np.asarray(seeds, np.int32), count))
    parts = 1 if plan is None else plan.parts
    run_step = functools.partial(train_step, task.classifier, task.clip.preprocessing, recipe, params, given)
    with contextlib.ExitStack() as opened:
        if progress is not None:
            opened.callback(progress.close)
        checkpoints = None if folder is None else Checkpoints(folder, identity=identity or {}, earlier=earlier)
        if checkpoints is not None:
            opened.callback(checkpoints.close)
            found = checkpoints.restore(fresh)
            if found is not None:
                step, restored, losses = found
                state = meshes.place(mesh, meshes.fill(restored, count), meshes.RUN)
        if progress is not None:
            progress.start(total, done=step)
            if plan is not None:
                progress.say(f"memory: {plan}")
        metrics = None
        if metrics_folder is not None and step < total:  # the lines of later stages stay
            first = before + step + 1
            options: dict[str, Any] = dict(start_step=first, steps=whole or total, trackers=trackers)
            metrics = opened.enter_context(MetricWriter(metrics_folder, **options))
        traced = None
        if profile and metrics_folder is not None:
            traced = StepProfile(metrics_folder, first=step, total=total)
            opened.callback(traced.close)
        batches: RunBatches | FeatureBatches
        if features is None:
            size = task.clip.config.vision.image_size
            threads = Workers.of(workers)
            batches = RunBatches(images, seeds, recipe, mesh, image_size=size, start_step=step, workers=threads)
            opened.callback(batches.close)
        else:
            labels, sampling = [one.labels for one in images], sampling_of(task.method)
            pooled = sampling is not None and sampling.training == "pooled"
            batches = FeatureBatches(features, labels, seeds, recipe, mesh, pooled=pooled, start_step=step)
        waiting = None if features is not None else lambda: batches.waiting_share
        told = (type(task.method).__name__, seeds, progress, metrics)
        report = StepReport(*told, images=rows * len(runs), losses=losses, waiting=waiting)
        pace, careful = Pace(mesh, seconds=checkpoint_seconds, saves=checkpoints is not None), _Careful()
        processes.agree()  # nothing that a step needs is missing anywhere
        with noted() as notice, explain_exhaustion(_advice(plan)):
            while step < total:
                rate = rates[step]
                learning_rate = meshes.place(mesh, meshes.fill(rate.astype(np.float32), count), meshes.RUN)
                # Epochs end with the learnables that enter the average.
                weight = None
                if weights is not None:
                    ends = step + 1 == total or not (step + 1) % per_epoch
                    weight = meshes.replicate(mesh, np.float32(weights[step // per_epoch] if ends else 0))
                if traced is not None:
                    traced.before(step)
                batch = careful(next, batches)
                own = batches.blank() if batch is None else batch
                state, values = run_step(state, own, learning_rate, weight, mesh, parts=parts)
                del batch, own  # the device keeps what it still computes from, and the next one needs the room
                batches.computes(values["loss"])
                if traced is not None:
                    traced.after(step, values)
                step += 1
                careful(report.step, before + step, values, rate)
                if step == total:
                    careful(report.catch_up)  # which waits for it: a notice may come meanwhile
                save, stop, failed = pace(bool(notice.given), last=step == total, failed=careful.error is not None)
                if failed:
                    processes.agree(careful.error)
                ends_stage = step == total and before + total < whole  # the next stage starts from it
                if stop:
                    notice.saving()
                if checkpoints is not None and (save or ends_stage):
                    careful(report.catch_up)  # nothing is saved after a loss that is not finite
                    processes.agree(careful.error)
                    checkpoints.save(step, meshes.cut(mesh, state, len(runs)), report.losses)
                    pace.saved()
                if stop:
                    if checkpoints is not None:
                        checkpoints.wait()
                    number = max(processes.gather(notice.given))  # of the signal; all have written their part
                    where = f"step {before + step} of {whole or total}"
                    raise Interrupted(f"stopped at {where}; the same command continues.", number=number)
    seconds = time.monotonic() - began
    learned = meshes.cut(mesh, state.learnables if state.average is None else state.average, len(runs))
    learnables = with_constants(learned, start)
    return Trained(learnables, report.losses, seconds, steps=total, waiting_share=batches.waiting_share)


class _Careful:
    """Calls whose failure this process keeps to itself until the others know: without it their steps do not end."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __call__(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """What `run` returns; `None` from its first failure on. A process by itself fails at once."""
        if self.error is None:
            try:
                return run(*arguments)
            except Exception as error:
                if not processes.several():
                    raise
                self.error = error
        return None


def _advice(plan: StepPlan | None) -> str:
    """What to do where a step exhausts the memory."""
    needs = "" if plan is None else f"a step needs {plan}: "
    to_do = (
        "lower --config.batch_size or --config.micro_batch, raise --config.class_chunks, or set --config.remat=tokens."
    )
    return f"{needs}{to_do}"


def rows_per_step(images: Sequence[Images | Split], recipe: Recipe) -> int:
    """The number of images in a step of each run. Raises `ClipbiasError` where runs differ in their steps."""
    shapes = {(recipe.total_steps(len(one)), min(len(one), recipe.batch_size)) for one in images}
    if len(shapes) > 1:
        raise ClipbiasError("the runs of one pack have different numbers of steps; train them separately.")
    return shapes.pop()[1]
