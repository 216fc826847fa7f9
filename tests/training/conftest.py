"""A tiny model and a tiny image set that training tests share."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.job import Logging, Run, TrainJob, TrainResult
from clipbias.tuning import Task
from clipbias.tuning.method import stack_runs
from clipbias.tuning.recipe import Recipe

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def colour_split(count: int, seed: int) -> Split:
    """`count` noisy 20 x 24 PNGs of each colour."""
    rng = np.random.default_rng(seed)
    encoded = []
    labels = []
    for label, colour in enumerate(COLOURS.values()):
        for _ in range(count):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
            labels.append(label)
    return Split(tuple(f"{seed}/{i}.png" for i in range(len(labels))), np.array(labels), encoded.__getitem__, source="")


def colour_dataset() -> Dataset:
    splits = {"train": colour_split(6, 0), "val": colour_split(2, 1), "test": colour_split(5, 2)}
    return Dataset("colours", tuple(COLOURS), "a photo of a {}.", splits)


def damaged(split: Split, *broken: int) -> Split:
    """The split with some images that cannot be decoded."""
    return dataclasses.replace(split, read=lambda index: b"broken" if index in broken else split.read(index))


def few_shot_runs(dataset: Dataset, seeds: tuple[int, ...], shots: int = 4) -> list[Run]:
    """A run for each seed, on its draw."""
    draws = [protocols.few_shot(dataset, shots=shots, seed=seed) for seed in seeds]
    return [Run(Images.of(draw.source.split("train")), seed, draw) for draw, seed in zip(draws, seeds, strict=True)]


def group(
    clip: Clip, dataset: Dataset, method: str, seeds: tuple[int, ...], *, groups: int = 1
) -> tuple[Task, list[Run]]:
    """A method bound to a dataset, and a run for each seed."""
    task = Task(clip, method, dataset.class_names, template=dataset.template).with_memory(class_shards=groups)
    return task, few_shot_runs(dataset, seeds)


def make_job(
    task: Task, runs: Sequence[Run], recipe: Recipe | None, mesh: Mesh | None = None, logging: Logging | None = None
) -> TrainJob:
    """A job of these runs by itself."""
    context = SweepContext(task.clip, {}, Compute(), mesh or meshes.single_device(), dtype=task.classifier.dtype)
    return TrainJob(context, task, recipe, tuple(runs), logging=logging or Logging())


def train_runs(
    task: Task, runs: Sequence[Run], recipe: Recipe, mesh: Mesh | None = None, **logging: Any
) -> TrainResult:
    """Trains runs from the learnables of their seeds; `logging` are fields of `Logging`."""
    start = stack_runs([jax.device_get(task.init(run.start_seed)) for run in runs])
    return loop.train(make_job(task, runs, recipe, mesh, Logging(**logging)), start)


@pytest.fixture(scope="session")
def colours() -> Dataset:
    return colour_dataset()


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """One recipe for all: a step's program depends on it. Its batch is as large as the smallest training set."""
    return Recipe(
        learning_rate=0.05,
        epochs=3,
        warmup_epochs=1,
        warmup_learning_rate=1e-3,
        batch_size=6,
        momentum=0.9,
        weight_decay=5e-4,
    )
