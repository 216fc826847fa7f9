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

from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, Batch, steps_per_epoch, train_batches
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.agreement import Agreement
from clipbias.training.checkpoint import Checkpoints
from clipbias.training.interruption import Interrupted, stop_notice
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import Progress
from clipbias.training.settings import Recipe
from clipbias.training.step import TrainState, init_state, train_step
from clipbias.tuning import Task
from clipbias.tuning.classifier import Text
from clipbias.tuning.method import Learnables


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a pack: its task, training images and seed. The runs of a pack have equal shapes."""

    task: Task
    train: Split | Images
    seed: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a pack of runs ends with.

    Attributes:
      learnables: of all runs, leading axis `R`, on the mesh.
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
    """The learnables of all runs, stacked on a leading axis `R`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(jax.device_get(run.task.init(run.seed)) for run in runs))


def place_text(mesh: Mesh, runs: Sequence[Run], params: Params, learnables: Learnables) -> tuple[Text, bool]:
    """What stands for the classes, on the mesh: shared where all runs have one task, else stacked."""
    first = runs[0].task
    if all(run.task is first for run in runs):
        return _place_one(mesh, first, params, learnables), False
    texts = [_place_one(mesh, run.task, params, learnables) for run in runs]
    shapes = {str(jax.tree.map(lambda leaf: leaf.shape, text)) for text in texts}
    if len(shapes) > 1:
        raise ClipbiasError("the runs of one pack have texts of different shapes; train them in separate packs.")
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *texts)
    return meshes.place(mesh, stacked, meshes.RUN), True


def _place_one(mesh: Mesh, task: Task, params: Params, learnables: Learnables) -> Text:
    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), learnables)
    if not task.classifier.changes_text(one):
        return task.fixed_text(params, one)
    groups = task.text.ids.shape[0]
    split = meshes.DATA if groups == mesh.shape[meshes.DATA] else None
    order = meshes.replicate(mesh, task.text.order)
    rest = dataclasses.replace(task.text, order=np.zeros(groups, np.int32))  # one entry per class, not per group
    return dataclasses.replace(meshes.place(mesh, rest, split), order=order)


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
) -> Trained:
    """Trains a pack of runs to the end, from the latest checkpoint if there is one.

    Args:
      clip: the frozen model.
      params: its weights on the mesh.
      runs: runs of equal shapes: one method, equally many classes and images.
      recipe: optimiser and schedule.
      mesh: where to compute.
      folder: where checkpoints lie; `None` keeps none.
      identity: what must be equal for a checkpoint to be continued.
      checkpoint_seconds: least time between two checkpoints; 0 saves after every step (with several processes, which
        agree on it a step later, after every second).
      progress: told about every step.
      metrics_folder: where `metrics.jsonl` goes.

    Raises:
      ClipbiasError: the loss is not finite; the last good checkpoint stays.
      Interrupted: a notice to stop came; the state is saved.
    """
    began = time.monotonic()
    images = [Images.of(run.train, cache_bytes=DEFAULT_CACHE_BYTES) for run in runs]
    size = len(images[0])
    if any(len(one) != size for one in images):
        raise ClipbiasError("the runs of one pack have different numbers of training images; train them separately.")
    per_epoch = steps_per_epoch(size, recipe.batch_size)
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
        metrics = None if metrics_folder is None else MetricWriter(metrics_folder, start_step=step + 1)
        rates = recipe.learning_rates()
        batches = PackedBatches(clip, images, runs, recipe, mesh, start_step=step)
        follow = _Follower(runs, progress, metrics, images=len(runs) * min(recipe.batch_size, size))
        run_step = functools.partial(
            train_step, runs[0].task.classifier, clip.preprocessing, recipe, params, text, stacked_text=stacked_text
        )
        agree = Agreement(mesh)
        saved_at = time.monotonic()
        with stop_notice() as notice:
            while step < total:
                rate = rates[step // per_epoch]
                learning_rate = meshes.place(mesh, np.full(len(runs), rate, np.float32), meshes.RUN)
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
        self._late: tuple[int, Any, float] | None = None
        self._when = time.monotonic()
        self.losses = [float("nan")] * len(runs)

    def step(self, step: int, values: Any, rate: float) -> None:
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
                    "the last checkpoint is kept; lower --config.learning_rate or check the images."
                )
        self.losses = values["loss"].tolist()
        now = time.monotonic()
        seconds, self._when = now - self._when, now
        if self._progress is not None:
            shown = {
                "loss": float(values["loss"].mean()),
                "lr": float(rate),
                "images/s": self._images / max(seconds, 1e-9),
            }
            self._progress.advance(1, shown)
        if self._metrics is not None:
            lines = {name: value.tolist() if len(value) > 1 else float(value[0]) for name, value in values.items()}
            self._metrics.write(step, {**lines, "learning_rate": float(rate), "seconds": round(seconds, 4)})


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
