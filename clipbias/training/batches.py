"""The images of runs that train side by side, decoded, stacked and placed on the mesh ahead of their use."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.data.dataset import Split
from clipbias.data.images import Ahead, Images, Workers
from clipbias.data.pipeline import Batch, Batches, Source, test_batches, train_source
from clipbias.data.transforms import Resizing
from clipbias.training import mesh as meshes
from clipbias.tuning.recipe import Recipe


def split_batches(
    images: Split | Images,
    mesh: Mesh,
    *,
    resizing: Resizing,
    batch_size: int,
    workers: Workers,
    on_error: str,
    crops: int = 0,
    mixed: bool = False,
) -> Batches:
    """Every image once, in list order, on the host: this process's rows of batches for a mesh.

    Evaluations, features and studies read images through it; arguments are those of `data.test_batches`. The batch size
    is that of all devices (`mesh.rows`).
    """
    share = meshes.share(mesh)
    return test_batches(
        images,
        resizing=resizing,
        batch_size=batch_size,
        shard=(share.part, share.parts),
        on_error=on_error,
        crops=crops,
        mixed=mixed,
        workers=workers,
    )


class RunBatches(Iterator[Batch]):
    """The batches of all runs side by side on the mesh: `[R, B, …]`, with a mask where `B` is padded to divide.

    Images that cannot be read are black and masked with `on_error="skip"`; the steps stay the same. `R` is padded
    too (`mesh.padded`). Each process makes what lies on its devices. Runs with the same images and the same seed, which
    differ in their learning rates, see the same pixels: these are made, kept and sent to the devices once, and copied
    there for the step that takes them.
    """

    def __init__(
        self,
        images: Sequence[Images],
        seeds: Sequence[int],
        recipe: Recipe,
        mesh: Mesh,
        *,
        resizing: Resizing,
        start_step: int,
        workers: Workers,
        on_error: str = "raise",
    ) -> None:
        """Makes nothing yet. Runs have equally many steps, of which `start_step` are done."""
        share = meshes.share(mesh)
        runs = share.runs(mesh, len(images))
        keys = [(id(images[run]), seeds[run]) for run in runs]
        first_with = {key: run for key, run in zip(reversed(keys), reversed(runs), strict=True)}
        distinct = list(dict.fromkeys(keys))

        def source(run: int) -> Source:
            return train_source(
                images[run],
                resizing=resizing,
                batch_size=recipe.batch_size,
                seed=seeds[run],
                epochs=recipe.total_epochs(len(images[run])),
                start_step=start_step,
                shard=(share.part, share.parts),
                keep_last=recipe.keep_last,
                crop=recipe.crop if recipe.augment else None,
                on_error=on_error,
            )

        sources = [source(first_with[key]) for key in distinct]
        self._mesh = mesh
        self._images = images
        self._sources = sources
        self._of_runs = tuple(map(distinct.index, keys))  # which source each run of this process has
        self._multiple = share.multiple
        # Whether runs that share a source get copies of its batches, and whether the devices make these, each of which
        # then has the batches of all sources. They do where these are no more than a device's own runs, and where this
        # process has a part of all runs and so images of all.
        self._copies = len(runs) > len(distinct)
        there = len(runs) == meshes.padded(mesh, len(images)) and len(distinct) * mesh.shape[meshes.RUN] <= len(runs)
        self._copies_there = self._copies and there
        self._computed: Any = None
        first = sources[0]
        self._ahead = Ahead[Batch](
            workers,
            first.numbers,
            self._begin,
            pieces=len(sources) * len(first.pieces),
            size=first.nbytes * len(sources),
            busy=lambda: self._computed is not None and not self._computed.is_ready(),
        )

    def _begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        """The pieces of a batch, which threads make, and what stacks them and places the batch on the mesh."""
        first = self._sources[0]
        pieces = list[Callable[[], None]]()
        batch = first.empty(len(self._sources), more=-first.shape[0] % self._multiple)
        for place, source in enumerate(self._sources):
            of_source = {name: values[place] for name, values in batch.items()}
            pieces += [functools.partial(source.fill, of_source, number, rows) for rows in source.pieces]

        def finish() -> Batch:
            for values in batch.values():
                values[:, first.shape[0] :] = 0
            whole = batch
            if self._copies and not self._copies_there:
                whole = {name: values[list(self._of_runs)] for name, values in batch.items()}
            return meshes.place_batch(self._mesh, whole, runs=not self._copies_there)

        return pieces, finish

    def __next__(self) -> Batch:
        batch = next(self._ahead)
        # Copied by the main thread, so that all processes do it in order.
        return _copies(self._mesh, self._of_runs)(batch) if self._copies_there else batch

    def computes(self, values: jax.Array) -> None:
        """Says what the devices compute from the last batch: until it is there, nobody waits for images."""
        self._computed = values

    def skipped(self) -> tuple[int, ...]:
        """How many training images of each run some process could not read and has masked. All must call this."""
        by_process = hosts.gather([sorted(images.unreadable) for images in self._images])
        return tuple(len(set().union(*names)) for names in zip(*by_process, strict=True))

    @property
    def waiting_share(self) -> float:
        """Share of the steps' time, without the first's, in which the devices only waited for images."""
        return self._ahead.waiting_share

    def close(self) -> None:
        self._ahead.close()
        self._sources, self._computed = [], None  # `_ahead` calls back here: what is large must not wait for that cycle


@functools.lru_cache(maxsize=16)
def _copies(mesh: Mesh, of_runs: tuple[int, ...]) -> Callable[[Batch], Batch]:
    """The program from `[S, B, …]` on all devices along the `run` axis to `[R, B, …]`, where each has its own runs."""
    sources = np.asarray(of_runs)
    sharding = meshes.sharding(mesh, (len(of_runs), 1), meshes.RUN, meshes.DATA)
    return jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf[sources], batch), out_shardings=sharding)
