"""A tiny model, a tiny image set, and jobs and sweeps of them that training tests share."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import Images
from clipbias.training import loop, placement
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.loop import Run, RunOutputs, TrainJob, TrainResult
from clipbias.training.predictor import evaluate
from clipbias.training.rates import Rates
from clipbias.training.spec import Row, RunSpec, run_names
from clipbias.training.sweep import SweepAxes, make_specs, sweep
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import Task
from clipbias.tuning.adapter import Adapter, read_adapter
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
    return [Run(Images(draw.source.split("train")), seed, draw) for draw, seed in zip(draws, seeds, strict=True)]


def group(clip: Clip, dataset: Dataset, method: str, seeds: tuple[int, ...]) -> tuple[Task, list[Run]]:
    """A method bound to a dataset, and a run for each seed."""
    return Task(clip, method, dataset.class_names, template=dataset.template), few_shot_runs(dataset, seeds)


def make_job(
    task: Task, runs: Sequence[Run], recipe: Recipe | None, mesh: Mesh | None = None, **compute: Any
) -> TrainJob:
    """A job of these runs by itself; `compute` are fields of `Compute`."""
    settings = Compute(trackers=(), **compute)
    context = SweepContext(task.clip, {}, settings, mesh or placement.single_device(), dtype=task.classifier.dtype)
    return TrainJob(context, task, recipe, tuple(runs))


def train_runs(
    task: Task,
    runs: Sequence[Run],
    recipe: Recipe,
    mesh: Mesh | None = None,
    profile: str | None = None,
    **outputs: Any,
) -> TrainResult:
    """Trains runs from the learnables of their seeds; `outputs` are fields of `RunOutputs`."""
    start = stack_runs([jax.device_get(task.init(run.start_seed)) for run in runs])
    job = make_job(task, runs, recipe, mesh, profile=profile)
    return loop.train(dataclasses.replace(job, outputs=RunOutputs(**outputs)), start)


@pytest.fixture
def cache_settings() -> Iterator[Callable[[str | None], str | None]]:
    """Sets JAX's folder of compiled programs and returns what it was; afterwards all is as before."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]

    def exchange(folder: str | None) -> str | None:
        was = getattr(jax.config, names[0])
        jax.config.update(names[0], folder)
        return was

    yield exchange
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


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


@dataclasses.dataclass
class TinySweep:
    """A sweep over `datasets` (one, or several by name) in `folder`.

    Attributes:
      options: of methods, by their names.
      targets: datasets that are tested besides.
      compute: how it is computed.
    """

    clip: Clip
    datasets: Dataset | Mapping[str, Dataset]
    recipe: Recipe
    folder: Path
    mesh: Mesh | None = None
    protocol: str = "few_shot"
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    targets: Sequence[str] = ()
    compute: Compute = Compute(trackers=(), eval_batch_size=8)  # noqa: RUF009 (it is frozen)
    dtype: str = "float32"
    on_image_error: str = "raise"

    def __post_init__(self) -> None:
        if isinstance(self.datasets, Dataset):
            self.datasets = {self.datasets.name: self.datasets}
        self.mesh = self.mesh or placement.single_device()
        self.context = SweepContext(
            self.clip, self.datasets, self.compute, self.mesh, dtype=self.dtype, on_image_error=self.on_image_error
        )

    def specs(
        self,
        *methods: str,
        shots: Sequence[int | None] = (2,),
        seeds: Sequence[int] = (1, 2),
        rates: Rates | None = None,
        **axes: Any,
    ) -> list[RunSpec]:
        """The runs of some methods on all datasets that are no targets; `axes` are further ones."""
        combined = SweepAxes(
            methods=methods,
            datasets=tuple(name for name in self.datasets if name not in self.targets),
            shots=tuple(shots),
            seeds=tuple(seeds),
            options=self.options,
            protocol=self.protocol,
            targets=tuple(self.targets),
            **axes,
        )
        return make_specs(self.context, self.recipe, combined, rates)

    def run(self, specs: Sequence[RunSpec], **options: Any) -> list[Row]:
        """Runs specs; returns their rows."""
        return sweep(specs, self.context, self.folder, self.recipe, **options)

    def rows(self, *methods: str, **options: Any) -> list[Row]:
        """Runs some methods; options as of `specs`."""
        return self.run(self.specs(*methods, **options))

    def adapter(self, spec: RunSpec, specs: Sequence[RunSpec] = ()) -> Adapter:
        """The adapter of a run of a sweep over `specs`, or over `spec` alone."""
        return read_adapter(SweepPaths(self.folder, run_names(specs or [spec])).adapter(spec))


def score_of(adapter: Adapter, clip: Clip, split: Split, own_methods: Sequence[str] = (), **options: Any) -> Row:
    """What an adapter scores on images."""
    settings = dict(mesh=placement.single_device(), eval_batch_size=8, on_image_error="raise")
    return evaluate(adapter.bind(clip, own_methods=own_methods), split, **settings | options)[0]
