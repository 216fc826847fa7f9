"""The training loop: runs of one shape, trained side by side in one program, saved and continued."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip, PackedTokens
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, Batch, steps_per_epoch, train_batches
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.agreement import Agreement
from clipbias.training.alike import crop, features_alike, fill_up, packed_alike, same_program
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.interruption import Interrupted, stop_notice
from clipbias.training.memory import StepPlan, explain_exhaustion
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import Progress
from clipbias.training.settings import Recipe
from clipbias.training.step import TrainState, init_state, train_step
from clipbias.tuning import Task
from clipbias.tuning.classifier import Text
from clipbias.tuning.method import Learnables


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a pack: its task, training images and seed.

    The runs of a pack share method and options, and have equally many steps; their classes may differ.
    `learning_rate` goes before the recipe's.
    """

    task: Task
    train: Split | Images
    seed: int
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a pack of runs ends with.

    Attributes:
      learnables: of all runs, leading axis `R`, on the mesh; filled up where the runs' classes differ (`alike.crop`).
      losses: the last step's loss of each run.
      seconds: wall time spent in this process.
      steps: steps done in all.
      waiting_share: share of that time spent waiting for images.
    """

    learnables: Learnables
    losses: list[float]
    seconds: float
    steps: int
    waiting_share: float


def initial_learnables(runs: Sequence[Run]) -> Learnables:
    """The learnables of all runs, filled up to equal shapes and stacked on a leading axis `R`."""
    first = [jax.device_get(run.task.init(run.seed)) for run in runs]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *fill_up(first))


def place_text(mesh: Mesh, runs: Sequence[Run], params: Params, learnables: Learnables) -> tuple[Text, bool]:
    """What stands for the classes, on the mesh: shared where all runs have one task, else filled up and stacked."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if not same_program(tasks):
        raise ClipbiasError("the runs of one pack differ in more than their classes; train them in separate packs.")
    first, one = tasks[0], jax.tree.map(lambda leaf: np.asarray(leaf[0]), learnables)
    stacked = len(tasks) > 1
    if not first.classifier.changes_text(one):
        if not stacked:
            return first.fixed_text(params, one), False
        own = [jax.tree.map(lambda leaf: np.asarray(leaf[0]), crop(learnables, task)) for task in tasks]
        each = [np.asarray(task.fixed_text(params, one)) for task, one in zip(tasks, own, strict=True)]
        texts = dict(zip(tasks, features_alike(each, first.classifier.templates), strict=True))
        return meshes.place(mesh, np.stack([texts[run.task] for run in runs]), meshes.RUN), True
    groups = first.text.ids.shape[0]
    split = meshes.DATA if groups % mesh.shape[meshes.DATA] == 0 else None
    if not stacked:
        return _place_packed(mesh, first.text, split), False
    packed = dict(zip(tasks, packed_alike(tasks, groups=groups), strict=True))
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *(packed[run.task] for run in runs))
    return _place_packed(mesh, together, meshes.RUN, split), True


def _place_packed(mesh: Mesh, text: PackedTokens, *axes: str | None) -> PackedTokens:
    order = meshes.place(mesh, text.order, *axes[:-1])  # one entry per class, not per group
    rest = dataclasses.replace(text, order=np.zeros(text.ids.shape[: len(axes)], np.int32))
    return dataclasses.replace(meshes.place(mesh, rest, *axes), order=order)


def train(
    clip: Clip,
    params: Params,
    runs: Sequence[Run],
    recipe: Recipe,
    *,
    mesh: Mesh,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress | None = None,
    metrics_folder: Path | None = None,
    plan: StepPlan | None = None,
) -> Trained:
    """Trains a pack of runs to the end, from the latest checkpoint if there is one.

    Args:
      clip: the frozen model.
      params: its weights on the mesh.
      runs: of one method with equal options, and equally many steps.
      recipe: optimiser and schedule.
      mesh: where to compute.
      folder: where checkpoints lie; `None` keeps none.
      identity: what must be equal for a checkpoint to be continued.
      checkpoint_seconds: least time between two checkpoints; 0 saves after every step (with several processes, which
        agree on it a step later, after every second).
      progress: told about every step.
      metrics_folder: where `metrics.jsonl` goes.
      plan: what the step was planned to need; said before the first step.

    Raises:
      ClipbiasError: the loss is not finite, or the device's memory is exhausted; the last good checkpoint stays.
      Interrupted: a notice to stop came; the state is saved.
    """
    began = time.monotonic()
    images = [Images.of(run.train, cache_bytes=DEFAULT_CACHE_BYTES) for run in runs]
    sizes = [min(len(one), recipe.batch_size) for one in images]
    per_epoch = steps_per_epoch(len(images[0]), recipe.batch_size)
    if any(steps_per_epoch(len(one), recipe.batch_size) != per_epoch for one in images) or len(set(sizes)) > 1:
        raise ClipbiasError("the runs of one pack have different numbers of steps; train them separately.")
    total = per_epoch * recipe.epochs
    initial = initial_learnables(runs)
    text, stacked_text = place_text(mesh, runs, params, initial)
    state: TrainState = meshes.place(mesh, init_state(recipe, initial), meshes.RUN)
    checkpoints = None if folder is None else Checkpoints(folder, identity=identity or {})
    step, metrics = 0, None
    try:
        if checkpoints is not None and (restored := checkpoints.restore(state)) is not None:
            step, state = restored
        if progress is not None:
            progress.start(total, done=step)
            if plan is not None:
                progress.say(f"memory: {plan}")
        metrics = None if metrics_folder is None else MetricWriter(metrics_folder, start_step=step + 1, steps=total)
        rates = np.stack([recipe.at(run.learning_rate).learning_rates() for run in runs], axis=1)
        batches = PackedBatches(clip, images, runs, recipe, mesh, start_step=step)
        follow = _Follower(runs, progress, metrics, images=sum(sizes))
        classes = None
        if stacked_text:
            counts = np.array([len(run.task.class_names) for run in runs], np.int32)
            classes = meshes.place(mesh, counts, meshes.RUN)
        run_step = functools.partial(
            train_step,
            runs[0].task.classifier,
            clip.preprocessing,
            recipe,
            params,
            text,
            classes=classes,
            stacked_text=stacked_text,
        )
        agree = Agreement(mesh)
        saved_at = time.monotonic()
        needs = "" if plan is None else f"a step needs {plan}: "
        advice = f"{needs}lower --config.batch_size, raise --config.class_chunks, or set --config.remat=tokens."
        with stop_notice() as notice, explain_exhaustion(advice):
            while step < total:
                rate = rates[step // per_epoch]
                learning_rate = meshes.place(mesh, rate.astype(np.float32), meshes.RUN)
                state, values = run_step(state, next(batches), learning_rate)
                step += 1
                follow.step(step, values, rate)
                last = step == total
                due = checkpoints is not None and time.monotonic() - saved_at >= checkpoint_seconds
                due, stop = agree(due and not last, notice.given, now=last)
                if checkpoints is not None and (due or stop):
                    follow.catch_up()  # nothing is saved after a loss that is not finite
                    checkpoints.save(step, state)
                    saved_at = time.monotonic()
                if stop:
                    raise Interrupted(f"stopped at step {step} of {total}; the same command continues.")
            follow.catch_up()
        if checkpoints is not None:
            checkpoints.wait()
    finally:
        for opened in (checkpoints, metrics, progress):
            if opened is not None:
                opened.close()
    return Trained(
        learnables=state.learnables,
        losses=follow.losses,
        seconds=time.monotonic() - began,
        steps=total,
        waiting_share=batches.waiting_share,
    )


class _Follower:
    """Looks at each step's metrics one step late, so that the device never waits for the host."""

    def __init__(
        self, runs: Sequence[Run], progress: Progress | None, metrics: MetricWriter | None, *, images: int
    ) -> None:
        self._runs, self._progress, self._metrics, self._images = runs, progress, metrics, images
        self._late: tuple[int, Any, np.ndarray] | None = None
        self._when = time.monotonic()
        self.losses = [float("nan")] * len(runs)

    def step(self, step: int, values: Any, rate: np.ndarray) -> None:
        self.catch_up()
        self._late = (step, values, rate)

    def catch_up(self) -> None:
        if self._late is None:
            return
        step, values, rate = self._late
        self._late = None
        values = {name: np.asarray(value, np.float64) for name, value in meshes.fetch(values).items()}
        for run, loss in zip(self._runs, values["loss"], strict=True):
            if not np.isfinite(loss):
                raise ClipbiasError(
                    f"the loss of {run.task.method.__class__.__name__} (seed {run.seed}) is {loss} at step {step}; "
                    "what was saved before is kept; lower --config.learning_rate or check the images."
                )
        self.losses = values["loss"].tolist()
        now = time.monotonic()
        seconds, self._when = now - self._when, now
        if self._progress is not None:
            shown = {
                "loss": float(values["loss"].mean()),
                "lr": float(rate.max()),
                "images/s": self._images / max(seconds, 1e-9),
            }
            self._progress.advance(1, shown)
        if self._metrics is not None:
            lines = {name: value.tolist() if len(value) > 1 else float(value[0]) for name, value in values.items()}
            rates = rate.tolist() if len(set(rate.tolist())) > 1 else float(rate[0])
            self._metrics.write(step, {**lines, "learning_rate": rates, "seconds": round(seconds, 4)})


class PackedBatches(Iterator[Batch]):
    """The batches of all runs side by side on the mesh: `[R, B, …]`, with a mask where `B` is filled up."""

    def __init__(
        self, clip: Clip, images: Sequence[Images], runs: Sequence[Run], recipe: Recipe, mesh: Mesh, *, start_step: int
    ) -> None:
        processes = jax.process_count()
        self._mesh = mesh
        self._multiple = max(mesh.shape[meshes.DATA] // processes, 1)
        self._iterators = [
            train_batches(
                one,
                image_size=clip.config.vision.image_size,
                batch_size=recipe.batch_size,
                seed=run.seed,
                epochs=recipe.epochs,
                start_step=start_step,
                shard=(jax.process_index(), processes),
            )
            for one, run in zip(images, runs, strict=True)
        ]

    def __next__(self) -> Batch:
        batches = [next(iterator) for iterator in self._iterators]
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        rows = stacked["labels"].shape[1]
        missing = -rows % self._multiple
        stacked["mask"] = np.ones(stacked["labels"].shape, bool)
        filled = {
            name: np.pad(value, [(0, 0), (0, missing)] + [(0, 0)] * (value.ndim - 2)) for name, value in stacked.items()
        }
        return meshes.place_batch(self._mesh, filled)

    @property
    def waiting_share(self) -> float:
        """Share of the time spent waiting for images, over all runs."""
        return min(1.0, sum(iterator.waiting_share for iterator in self._iterators))
