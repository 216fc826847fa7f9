"""The images of runs that train side by side, made ahead, stacked and placed on the mesh by the decoding threads."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from clipbias.data.images import Images
from clipbias.data.pipeline import Batch, Source, train_source
from clipbias.data.workers import Ahead, Workers
from clipbias.training import mesh as meshes
from clipbias.tuning.recipe import Recipe


class RunBatches(Iterator[Batch]):
    """The batches of all runs side by side on the mesh: `[R, B, …]`, with a mask where `B` is padded to divide.

    `R` is filled up, too (`mesh.filled`). Each process makes what lies on its devices. Runs with the same images and
    the same seed, which differ in their learning rates, see the same pixels: these are made once.
    """

    def __init__(
        self,
        images: Sequence[Images],
        seeds: Sequence[int],
        recipe: Recipe,
        mesh: Mesh,
        *,
        image_size: int,
        start_step: int,
        workers: Workers,
    ) -> None:
        """Makes nothing yet.

        Args:
          images: of each run, with equally many steps.
          seeds: of each run.
          recipe: size of the batches, and how images are augmented.
          mesh: where they go.
          image_size: the side of the model's input.
          start_step: steps already done.
          workers: the threads.
        """
        share = meshes.share(mesh)
        runs = share.runs(mesh, len(images))
        rows: dict[Any, list[int]] = {}
        for row, run in enumerate(runs):
            rows.setdefault((id(images[run]), seeds[run]), []).append(row)

        def source(run: int) -> Source:
            return train_source(
                images[run],
                image_size=image_size,
                batch_size=recipe.batch_size,
                seed=seeds[run],
                epochs=recipe.total_epochs(len(images[run])),
                start_step=start_step,
                shard=(share.part, share.parts),
                keep_last=recipe.keep_last,
                crop=recipe.crop if recipe.augment else None,
            )

        sources = [(source(runs[own[0]]), own) for own in rows.values()]
        self._stacked = _Stacked(mesh, sources, runs=len(runs), multiple=share.multiple)
        first, busy = sources[0][0], _Busy()
        self._busy, self._ahead = (
            busy,
            Ahead[Batch](
                workers,
                first.numbers,
                self._stacked.begin,
                pieces=len(sources) * len(first.pieces),
                size=first.nbytes * len(runs),
                busy=busy,
            ),
        )

    def __next__(self) -> Batch:
        return next(self._ahead)

    def blank(self) -> Batch:
        """A batch that stands for one that cannot be made here: black images."""
        return self._stacked.blank()

    def computes(self, values: jax.Array) -> None:
        """Says what the devices compute from the last batch: until it is there, nobody waits for images."""
        self._busy.values = values

    @property
    def waiting_share(self) -> float:
        """Share of the steps' time, without the first's, in which the devices only waited for images."""
        return self._ahead.waiting_share

    def close(self) -> None:
        """Drops what is made ahead."""
        self._ahead.close()


class _Busy:
    """Whether devices still compute."""

    values: Any = None  # a `jax.Array`

    def __call__(self) -> bool:
        return self.values is not None and not self.values.is_ready()


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """Batches of several sources, each for the rows of some runs, as one on the mesh."""

    mesh: Mesh
    sources: Sequence[tuple[Source, list[int]]]
    runs: int
    multiple: int

    def empty(self) -> Batch:
        first = self.sources[0][0]
        return first.empty(self.runs, more=-first.shape[0] % self.multiple)

    def begin(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], Batch]]:
        batch, pieces = self.empty(), list[Callable[[], None]]()
        for source, (row, *_) in self.sources:
            own = {name: values[row] for name, values in batch.items()}
            pieces += [functools.partial(source.fill, own, number, rows) for rows in source.pieces]
        return pieces, functools.partial(self.finish, batch)

    def finish(self, batch: Batch) -> Batch:
        for source, (row, *others) in self.sources:
            for values in batch.values():
                values[row, source.shape[0] :] = 0
                values[others] = values[row]
        return meshes.place_batch(self.mesh, batch)

    def blank(self) -> Batch:
        batch = self.empty()
        for name, values in batch.items():
            values[:] = 0
            if name == "mask":
                values[:, : self.sources[0][0].shape[0]] = True
        return meshes.place_batch(self.mesh, batch)
