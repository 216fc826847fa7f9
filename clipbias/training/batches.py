"""Batches of runs that train side by side: images, decoded and placed on the mesh ahead of their use, or features.

Features of training images come from the frozen tower. They are computed once, pass by pass, and kept in memory.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Preprocessing, encode_image
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.data.dataset import Split
from clipbias.data.images import Ahead, Images, Workers
from clipbias.data.pipeline import Batch, Batches, Source, epoch_order, pass_batches, test_batches, train_source
from clipbias.data.transforms import Resizing
from clipbias.training import placement
from clipbias.tuning import Recipe, Sampling


@dataclasses.dataclass(frozen=True)
class Reading:
    """Way of images to devices: a mesh, what unreadable ones do ("raise" or "skip"), and threads that readers share."""

    mesh: Mesh
    on_error: str = "raise"
    workers: Workers = dataclasses.field(default_factory=Workers)

    def batches(
        self, split: Split | Images, *, resizing: Resizing, batch_size: int, crops: int = 0, mixed: bool = False
    ) -> Batches:
        """Opens the images of a split, each once, in list order, on the host: this process's rows of each batch.

        See `data.test_batches` for the arguments. The batch size is that of all devices (`placement.rows`).
        """
        share = placement.share(self.mesh)
        return test_batches(
            split,
            resizing=resizing,
            batch_size=batch_size,
            shard=(share.part, share.parts),
            on_error=self.on_error,
            crops=crops,
            mixed=mixed,
            workers=self.workers,
        )


class RunBatches(Iterator[Batch]):
    """Batches `[R, B, …]` of all runs on the mesh, with a mask where `B` is padded to a multiple of `data`.

    Unreadable images that are skipped are black and masked; the number of steps stays. `R` is padded too
    (`placement.RunAxis`). Each process makes the rows of its own devices.
    """

    def __init__(
        self,
        run_images: Sequence[Images],
        seeds: Sequence[int],
        recipe: Recipe,
        reading: Reading,
        *,
        resizing: Resizing,
        start_step: int,
    ) -> None:
        """Makes nothing yet. Runs have equally many steps, of which `start_step` are done."""
        mesh = reading.mesh
        share = placement.share(mesh)
        runs = share.runs(mesh, len(run_images))
        keys = [(id(run_images[run]), seeds[run]) for run in runs]
        # Padding repeats the last run, and rates of one seed its images: one source serves all of them.
        first_with = {key: run for key, run in zip(reversed(keys), reversed(runs), strict=True)}
        distinct = list(dict.fromkeys(keys))

        def source(run: int) -> Source:
            return train_source(
                run_images[run],
                resizing=resizing,
                batch_size=recipe.batch_size,
                seed=seeds[run],
                epochs=recipe.total_epochs(len(run_images[run])),
                start_step=start_step,
                shard=(share.part, share.parts),
                keep_last=recipe.keep_last,
                crop=recipe.crop if recipe.augment else None,
                on_error=reading.on_error,
            )

        self._mesh = mesh
        self._sources = sources = [source(first_with[key]) for key in distinct]
        self._of_runs = tuple(map(distinct.index, keys))  # the source of each run of this process
        self._multiple = share.multiple
        # Runs with the same images and seed, which differ in their learning rates, see the same pixels: these are
        # decoded, kept and sent to the devices once. The devices copy them where each device holds the batches of all
        # sources: these must be no more than its own runs, and this process must have a part of all runs.
        self._copies = len(runs) > len(distinct)
        has_all = len(runs) == placement.RunAxis(mesh, len(run_images)).padded
        self._copies_there = self._copies and has_all and len(distinct) * mesh.shape[placement.RUN] <= len(runs)
        self._computed: Any = None
        first = sources[0]
        self._ahead = Ahead[Batch](
            reading.workers,
            first.numbers,
            self._begin,
            pieces=len(sources) * len(first.pieces),
            size=first.nbytes * len(sources),
            busy=lambda: self._computed is not None and not self._computed.is_ready(),
        )

    def _begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        """Returns the pieces of a batch, for threads, and the function that places the finished batch on the mesh."""
        # Threads write into one array of all sources, so that nothing is stacked, and copied, in the end.
        first = self._sources[0]
        pieces = list[Callable[[], None]]()
        batch = first.empty(len(self._sources), more=-first.shape[0] % self._multiple)
        for place, source in enumerate(self._sources):
            of_source = {name: values[place] for name, values in batch.items()}
            pieces += [functools.partial(source.fill, of_source, number, rows) for rows in source.pieces]

        def finish() -> Batch:
            # Rows that pad the batch: the arrays came unset, the mask among them.
            for values in batch.values():
                values[:, first.shape[0] :] = 0
            whole = batch
            if self._copies and not self._copies_there:
                whole = {name: values[list(self._of_runs)] for name, values in batch.items()}
            return placement.place_batch(self._mesh, whole, runs=not self._copies_there)

        return pieces, finish

    def __next__(self) -> Batch:
        batch = next(self._ahead)
        # The main thread copies: all processes must start programs of several devices in the same order.
        return _copies(self._mesh, self._of_runs)(batch) if self._copies_there else batch

    def computes(self, values: jax.Array) -> None:
        """Notes the result that devices compute from the last batch; until it is ready, nobody waits for images."""
        self._computed = values

    @property
    def waiting_share(self) -> float:
        return self._ahead.waiting_share

    def close(self) -> None:
        self._ahead.close()
        # `_ahead` holds methods of this object. In that cycle large arrays would wait for the garbage collector.
        self._sources, self._computed = [], None


@functools.lru_cache(maxsize=16)
def _copies(mesh: Mesh, of_runs: tuple[int, ...]) -> Callable[[Batch], Batch]:
    """Makes the program from `[S, B, …]`, whole along the `run` axis, to `[R, B, …]`, split along it."""
    # Cached above, since a new function would be compiled for every training.
    sources = np.asarray(of_runs)
    sharding = placement.sharding(mesh, (len(of_runs), 1), placement.RUN, placement.DATA)
    return jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf[sources], batch), out_shardings=sharding)


@dataclasses.dataclass(frozen=True)
class FeatureStatic:
    """Static arguments of `frozen_features`. Hashable."""

    config: ClipConfig
    preprocessing: Preprocessing
    dtype: str
    projected: bool = True


@functools.partial(jax.jit, static_argnames="static")
def frozen_features(static: FeatureStatic, params: Params, images: jax.Array) -> jax.Array:
    """Computes plain CLIP's features of uint8 images: `[B, d]` if projected, else `[B, Dv]`."""
    if not static.projected:
        # An identity in place of the projection: the tower has no second way out.
        params = {**params, "vision": params["vision"] | {"projection": jnp.eye(static.config.vision.width)}}
    return encode_image(params, static.config, static.preprocessing.normalize(images), dtype=static.dtype)[0]


@dataclasses.dataclass(eq=False)
class TrainingFeatures:
    """Features of one run's training images. Each pass is computed when it is first needed.

    `params` lie on the mesh; the batch size is that of all devices; the seed keys the augmentations. `readable` is
    false for skipped images, whose features are those of a black image.
    """

    static: FeatureStatic
    params: Params
    images: Images
    reading: Reading
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int
    crop: float

    def __post_init__(self) -> None:
        # Fewer images than a batch make a smaller program, not one that is mostly padding.
        self.batch_size = placement.rows(self.reading.mesh, min(self.batch_size, len(self.images)))
        self.readable = np.ones(len(self.images), bool)
        self._passes: np.ndarray | None = None
        self._seconds: list[float] = []  # of each batch, from files to features

    def passes(self, count: int) -> np.ndarray:
        """Returns the first `count` augmented passes, `[count, N, d]`."""
        # A pass is a function of seed and number, so later calls compute only the passes that are missing.
        if missing := range(0 if self._passes is None else len(self._passes), count):
            share = placement.share(self.reading.mesh)
            batches = pass_batches(
                self.images,
                passes=missing,
                seed=self.seed,
                crop=self.crop,
                resizing=self.static.preprocessing.resizing,
                batch_size=self.batch_size,
                shard=(share.part, share.parts),
                workers=self.reading.workers,
                on_error=self.reading.on_error,
            )
            features = self._compute(batches, len(missing))
            # In host memory: ProLIP's 300 passes of 16 images of 100 classes are 1.5 GB, which a device may lack.
            self._passes = features if self._passes is None else np.concatenate([self._passes, features])
        assert self._passes is not None
        return self._passes[:count]

    @functools.cached_property
    def plain(self) -> np.ndarray:
        # One pass of the images as they are evaluated, `[1, N, d]`.
        resizing = self.static.preprocessing.resizing
        return self._compute(self.reading.batches(self.images, resizing=resizing, batch_size=self.batch_size), 1)

    def support(self, sampling: Sampling) -> np.ndarray:
        """Returns the passes for `FeatureMethod.support`, `[E, N, d]`, also of unreadable images."""
        return self.passes(sampling.passes) if sampling.passes else self.plain

    def training(self, sampling: Sampling, epochs: int) -> np.ndarray:
        """Returns the passes for so many epochs of training, `[E, N, d]`: one for each epoch if they are fresh."""
        # With unreadable images, which `FeatureBatches` masks: the order of an epoch is that of a training on images.
        # Behind the passes of `support`, so that training sees other augmentations.
        if sampling.training == "fresh":
            return self.passes(sampling.passes + epochs)[sampling.passes :]
        return self.support(sampling)

    def seconds(self, images: int) -> float:
        """Estimates the time of so many images, also where another method has computed them."""
        # The median, since the first batch compiles and others wait for the disk.
        return images * statistics.median(self._seconds) / self.batch_size if self._seconds else 0.0

    def _compute(self, batches: Batches, passes: int) -> np.ndarray:
        results = []
        mesh = self.reading.mesh
        began = time.monotonic()
        for batch in batches:
            features = frozen_features(self.static, self.params, placement.place_rows(mesh, batch["images"]))
            # Fetched at once: features of all passes would fill the device, and threads decode ahead meanwhile.
            results.append(placement.device_get((features, placement.place_rows(mesh, batch["mask"]))))
            now = time.monotonic()
            self._seconds.append(now - began)
            began = now
        features, mask = (np.concatenate(list(map(np.asarray, parts))) for parts in zip(*results, strict=True))
        count = len(self.images)  # the rows behind them pad the last batch of a pass
        self.readable &= mask.reshape(passes, -1)[:, :count].all(0)
        return features.reshape(passes, -1, features.shape[-1])[:, :count]


@dataclasses.dataclass(eq=False)
class FeatureBatches(Iterator[Batch]):
    """Batches `[R, B, d]` of features of all runs on the mesh, from step `start_step` on.

    Features of each run are `[E, N, d]`: epoch `e` takes pass `e mod E`, or rows of all where they are `pooled`. Labels
    are `[N]`; seeds key the order of an epoch; images that are not `readable`, bool `[N]`, are masked.
    """

    features: Sequence[np.ndarray]
    run_labels: Sequence[np.ndarray]
    seeds: Sequence[int]
    recipe: Recipe
    mesh: Mesh
    _: dataclasses.KW_ONLY
    pooled: bool
    start_step: int
    readable: Sequence[np.ndarray] | None = None
    waiting_share: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        self._readable = self.readable or [np.ones(len(of_run), bool) for of_run in self.run_labels]
        self._step = self.start_step

    def __next__(self) -> Batch:
        share = placement.share(self.mesh)
        runs = share.runs(self.mesh, len(self.seeds))
        # Runs that repeat as padding are made once. Every process makes whole batches, which are small.
        parts = {run: self._rows(run) for run in set(runs)}
        self._step += 1
        stacked = {name: np.stack([parts[run][name] for run in runs]) for name in parts[runs[0]]}
        local = stacked["labels"].shape[1] // share.parts
        mine = slice(share.part * local, (share.part + 1) * local)
        return placement.place_batch(self.mesh, {name: value[:, mine] for name, value in stacked.items()})

    def computes(self, values: jax.Array) -> None:
        """Nothing is made ahead."""

    def close(self) -> None:
        """Nothing is made ahead."""

    def _rows(self, run: int) -> Batch:
        features = self.features[run]
        passes, examples = features.shape[:2]
        # Order, pass and rows are functions of seed and step, so that a resumed training draws the same batches.
        epoch, step = divmod(self._step, self.recipe.steps_per_epoch(examples))
        size = min(self.recipe.batch_size, examples)
        order = epoch_order(self.seeds[run], epoch, examples * (passes if self.pooled else 1))
        order_of_step = order[: examples if self.pooled else None][step * size : (step + 1) * size]
        turn, example = divmod(order_of_step, examples) if self.pooled else (epoch % passes, order_of_step)
        rows = size + -size % self.mesh.shape[placement.DATA]
        more = 0, rows - len(order_of_step)
        return {
            # Copies of the last row: the unit vector of zeros is NaN, and 0 · NaN in a masked gradient is NaN.
            "images": np.pad(features[turn, example], (more, (0, 0)), mode="edge"),
            "labels": np.pad(self.run_labels[run][example], more),
            "mask": np.pad(self._readable[run][example], more),
        }
