"""The driver: from methods, datasets, shots and seeds to accuracies. A single run is a grid of one cell.

A pack (`packs.py`) is finished as a whole or not at all. What is to do is found here, and what came of it written;
between the two each pack is prepared, trained and evaluated by `trainer.py`.
"""

import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.clip import Clip
from clipbias.data import Dataset, protocols
from clipbias.data.missing import open_datasets
from clipbias.errors import ClipbiasError, sentence
from clipbias.io import write_text
from clipbias.training.cache import Cache
from clipbias.training.dealing import Part, deal, planned_cost
from clipbias.training.packs import Pack, cells_of
from clipbias.training.progress import Progress, progress
from clipbias.training.results import Results, Row
from clipbias.training.settings import GridSettings
from clipbias.training.trainer import Trainer
from clipbias.training.workdir import CELLS
from clipbias.tuning.recipe import Recipe


def ready(cache: Cache, packs: Sequence[Pack], settings: GridSettings) -> list[Pack]:
    """The packs whose datasets can be used. Raises `ClipbiasError` where these are not all, and may not be left out."""
    needed, wanted = dict[Pack, tuple[str, ...]](), dict[str, int]()
    for pack in packs:
        targets = settings.targets
        if targets is None:
            targets = protocols.default_targets(settings.protocol, pack.dataset)
        needed[pack] = (pack.dataset, *targets)
        for name in needed[pack]:
            wanted.setdefault(name, 0)
        wanted[pack.dataset] = max(wanted[pack.dataset], pack.shots or int(cache.method(pack).draws))
    found = open_datasets(cache.dataset, wanted, skip=settings.on_missing == "skip")
    return [pack for pack, names in needed.items() if {*names} <= found.keys()]


class Grid:
    """Runs the packs that are not finished, writes their results, and takes up what an earlier process left."""

    trainer_class: type[Trainer] = Trainer

    def __init__(
        self,
        clip: Clip,
        recipe: Recipe,
        settings: GridSettings,
        load_dataset: Callable[[str], Dataset],
        workdir: Path,
        *,
        mesh: Mesh,
        single: bool = False,
        part: Part | None = None,
    ) -> None:
        """Prepares nothing yet.

        Args:
          clip: the frozen model.
          recipe: how learnables are trained.
          settings: what else the cells have in common.
          load_dataset: opens a dataset by its name.
          workdir: where all files go.
          mesh: where to compute.
          single: there is one cell, whose files lie in `workdir` itself, and whose failure is the grid's.
          part: that of the grid which is to be run; its results, metrics and checkpoints lie in a folder of its own.
        """
        own = workdir if part is None else part.folder(workdir)
        arguments = clip, recipe, settings, load_dataset, workdir
        self.trainer = self.trainer_class(*arguments, mesh=mesh, single=single, own_folder=own)
        self.part = part
        self.results = Results.of(workdir, own)

    def run(self, packs: Sequence[Pack]) -> list[Row]:
        """Runs every pack that is not finished, of a part's packs. A pack that fails is reported and the rest goes on.

        Returns:
          The rows of those packs, finished before or now.

        Raises:
          ClipbiasError: a dataset cannot be used (`data.missing`), and nothing was trained.
        """
        self.name_cells(packs)
        packs = self.own(packs)
        todo, total = self.unfinished(packs), cells_of(packs)
        done = total - cells_of(todo)
        self.carry_out(ready(self.trainer.cache, todo, self.trainer.settings), total=total, done=done)
        return hosts.from_first(lambda: self.rows(packs))

    def planned(self, packs: Sequence[Pack]) -> list[tuple[Pack, bool]]:
        """What this job runs of `packs`, in turn, and whether it is only tested what others of them learned."""
        return [(pack, False) for pack in self.own(packs)]

    def tests(self, packs: Sequence[Pack]) -> list[Pack]:
        """Those of which the table is made."""
        return list(packs)

    def name_cells(self, packs: Sequence[Pack]) -> None:
        """Tells those who read the results which lines are of this configuration."""
        if jax.process_index() == 0:
            named = {self.trainer.row(pack, *cell)["config_hash"] for pack in packs for cell in pack.cells}
            write_text(self.trainer.workdir / CELLS, json.dumps(sorted(named)) + "\n")

    def unfinished(self, packs: Sequence[Pack]) -> list[Pack]:
        """The packs that are to be run; of the others what a process left that was killed is removed."""
        # The first process decides: others may not see yet what was written before.
        finished = set(hosts.from_first(lambda: [i for i, pack in enumerate(packs) if self._is_finished(pack)]))
        todo = [pack for i, pack in enumerate(packs) if i not in finished]
        cells, left = cells_of(packs), cells_of(todo)
        if left < cells:
            logging.info("%d of %d cells are finished already", cells - left, cells)
        for pack in packs:
            if pack not in todo:  # killed right after their results were written
                self.trainer.remove_checkpoints(pack)
        return todo

    def carry_out(self, todo: Iterable[Pack], *, total: int, done: int, title: str = "cells") -> None:
        """Runs packs one after another and writes their rows.

        Args:
          todo: these; each is asked for when the one before it is done.
          total: cells in all, of which so many are `done`.
          title: what is counted.
        """
        with progress(0 if self.trainer.single else total, done=done, unit="cell", title=title) as bar:
            for pack in todo:
                hosts.check()
                bar.at_work(f"{pack.method} on {pack.dataset}, {pack.shots} shots")
                self.trainer.cache.keep_only(pack.dataset)
                for part, rows in self._attempt(pack, bar):
                    self._write(part, rows, bar)

    def results_of(self, pack: Pack) -> Results:
        """Where the rows of a pack are."""
        return self.results

    def own(self, packs: Sequence[Pack]) -> list[Pack]:
        """Those of the packs that this job runs: all, or its part's."""
        if self.part is None:
            return list(packs)
        packs, part = ready(self.trainer.cache, packs, self.trainer.settings), self.part
        dealt = hosts.from_first(lambda: deal([planned_cost(self.trainer, pack) for pack in packs], part))
        return [packs[index] for index in dealt]

    def rows(self, packs: Sequence[Pack]) -> list[Row]:
        """The rows of the cells of `packs` that are there."""
        wanted = (self.trainer.row(pack, *cell) for pack in packs for cell in pack.cells)
        return [row for row in map(self.results.get, wanted) if row is not None]

    def new(self, results: Results, rows: Sequence[Row]) -> list[Row]:
        """The rows that are not there yet."""
        return [row for row in rows if not results.finished(row, images=row["image_hash"] and (row["image_hash"],))]

    def _is_finished(self, pack: Pack) -> bool:
        rows = [self.trainer.row(pack, *cell) for cell in pack.cells]
        if self.trainer.single and not self.trainer.adapter_path(pack, *pack.cells[0]).exists():
            return False
        results = self.results_of(pack)
        if not all(map(results.finished, rows)):  # no dataset is opened to learn what the names tell
            return False
        images = self._image_hashes(pack)
        return all(results.finished(row, images=images) for row in rows)

    def _image_hashes(self, pack: Pack) -> tuple[str, ...] | None:
        """`None` where the images cannot be looked at now: results that are there stay."""
        try:
            return self.trainer.cache.image_hashes(pack)
        except Exception:  # it is told where they are needed
            return None

    def run_pack(self, pack: Pack) -> list[Row]:
        """The rows of a pack that is not finished."""
        return self.trainer.train(pack)

    def _attempt(self, pack: Pack, bar: Progress) -> Iterator[tuple[Pack, list[Row]]]:
        """A pack and its rows; where it fails, its learning rates one by one, so that none costs another."""
        began = time.monotonic()
        try:
            rows = self.run_pack(pack)
        except Exception as error:
            if self.trainer.single:
                raise
            if len(pack.learning_rates) > 1:
                for part in pack.by_rate:
                    yield from self._attempt(part, bar)
                return
            if not isinstance(error, ClipbiasError):
                logging.error("%s", "".join(traceback.format_exception(error)))
            images = (self._image_hashes(pack) or (None,))[0]
            told = {"status": "failed", "error": sentence(error), "image_hash": images}
            rows = [self.trainer.row(pack, *cell) | told | self.trainer.rate(pack, cell[0]) for cell in pack.cells]
            bar.say(f"failed: {pack.method} on {pack.dataset}, {pack.shots} shots: {sentence(error)}")
        for row in rows:
            row["seconds"] = round((time.monotonic() - began) / len(rows) + row.get("seconds", 0), 2)
        yield pack, rows

    def _write(self, pack: Pack, rows: Sequence[Row], bar: Progress) -> None:
        """Writes a pack's rows in one go: with a part of them, the rest would train in another program."""
        results = self.results_of(pack)
        results.append(self.new(results, rows))
        if all(row["status"] == "ok" for row in rows):
            self.trainer.remove_checkpoints(pack)
        if self.trainer.single:
            return
        # What is at work stands before the bar, and this, which came before it, behind.
        last = f"{pack.method} on {pack.dataset}"
        if accuracies := [row["accuracy"] for row in rows if "accuracy" in row]:
            last += f" {sum(accuracies) / len(accuracies):.1f} %"
        bar.advance(len(rows), {"last": last})
