"""The images of runs that train side by side, decoded, stacked and placed on the mesh ahead of their use."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.data.images import Ahead, Images, Workers
from clipbias.data.pipeline import Batch, Source, train_source
from clipbias.data.transforms import Resizing
from clipbias.training import mesh as meshes
from clipbias.tuning.recipe import Recipe


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
        """Makes nothing yet.

        Args:
          images: of each run, with equally many steps.
          seeds: of each run.
          recipe: size of the batches, and how images are augmented.
          mesh: where they go.
          resizing: how images get the size of the model's input.
          start_step: steps already done.
          workers: the threads.
          on_error: "raise", or "skip" to mask images that cannot be read.
        """
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
        self._stacked = _Stacked(
            mesh,
            sources,
            of_runs=tuple(map(distinct.index, keys)),
            multiple=share.multiple,
            there=len(runs) == meshes.padded(mesh, len(images)) and len(distinct) * mesh.shape[meshes.RUN] <= len(runs),
        )
        first = sources[0]
        self._busy = _Busy()
        self._images = images
        self._ahead = Ahead[Batch](
            workers,
            first.numbers,
            self._stacked.begin,
            pieces=len(sources) * len(first.pieces),
            size=first.nbytes * len(sources),
            busy=self._busy,
        )

    def __next__(self) -> Batch:
        return self._stacked.of_each_run(next(self._ahead))

    def computes(self, values: jax.Array) -> None:
        """Says what the devices compute from the last batch: until it is there, nobody waits for images."""
        self._busy.values = cast(_Readiness, values)

    def skipped(self) -> tuple[int, ...]:
        """How many training images of each run some process could not read and has masked. All must call this."""
        by_process = hosts.gather([sorted(images.unreadable) for images in self._images])
        return tuple(len(set().union(*names)) for names in zip(*by_process, strict=True))

    @property
    def waiting_share(self) -> float:
        """Share of the steps' time, without the first's, in which the devices only waited for images."""
        return self._ahead.waiting_share

    def close(self) -> None:
        """Drops what is made ahead."""
        self._ahead.close()


class _Readiness(Protocol):
    """What `jax.Array` has, though its type lacks it."""

    def is_ready(self) -> bool: ...


class _Busy:
    """Whether devices still compute."""

    values: _Readiness | None = None

    def __call__(self) -> bool:
        return self.values is not None and not self.values.is_ready()


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """Batches of several sources as one on the mesh, from which those of all runs are copied there.

    Attributes:
      mesh: where they go.
      sources: that differ.
      of_runs: which source each run of this process has.
      multiple: a batch has a multiple of so many rows.
      there: whether that is done by the devices, each of which then has the batches of all sources. It is where these
        are no more than a device's own runs, and where this process has a part of all runs and so images of all.
    """

    mesh: Mesh
    sources: Sequence[Source]
    of_runs: tuple[int, ...]
    multiple: int
    there: bool

    def begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        first = self.sources[0]
        pieces = list[Callable[[], None]]()
        batch = first.empty(len(self.sources), more=-first.shape[0] % self.multiple)
        for place, source in enumerate(self.sources):
            of_source = {name: values[place] for name, values in batch.items()}
            pieces += [functools.partial(source.fill, of_source, number, rows) for rows in source.pieces]
        return pieces, functools.partial(self.finish, batch)

    def finish(self, batch: Batch) -> Batch:
        for values in batch.values():
            values[:, self.sources[0].shape[0] :] = 0
        return self.place(batch)

    def place(self, batch: Batch) -> Batch:
        if self.copies and not self.there:
            batch = {name: values[list(self.of_runs)] for name, values in batch.items()}
        return meshes.place_batch(self.mesh, batch, runs=not (self.copies and self.there))

    @property
    def copies(self) -> bool:
        return len(self.of_runs) > len(self.sources)

    def of_each_run(self, batch: Batch) -> Batch:
        """`[R, B, …]` of what `place` has put on the mesh; by the main thread, so that all processes do it in order."""
        return _copies(self.mesh, self.of_runs)(batch) if self.copies and self.there else batch


@functools.lru_cache(maxsize=16)
def _copies(mesh: Mesh, of_runs: tuple[int, ...]) -> Callable[[Batch], Batch]:
    """The program from `[S, B, …]` on all devices along the `run` axis to `[R, B, …]`, where each has its own runs."""
    sources = np.asarray(of_runs)
    sharding = meshes.sharding(mesh, (len(of_runs), 1), meshes.RUN, meshes.DATA)
    return jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf[sources], batch), out_shardings=sharding)
