"""Methods x datasets x shots x seeds: what a Table 1 is made of.

A *cell* is one number of the table. Cells that differ in the seed only are a *pack*. Packs of one method with equally
many steps, on datasets with about as many classes, at several learning rates, train side by side as one *program*
(`programs.py`). A pack is finished as a whole or not at all, and programs depend on the configuration, on what is
unfinished and on the size of the device alone, so that an interrupted grid ends with the same numbers to the last bit.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset, protocols
from clipbias.data.pipeline import steps_per_epoch
from clipbias.errors import ClipbiasError, sentence
from clipbias.files import read_json, write_text
from clipbias.training import mesh as meshes
from clipbias.training.alike import crop, same_program
from clipbias.training.forecast import Forecast
from clipbias.training.interruption import Interrupted
from clipbias.training.loop import Run, initial_learnables, place_text, train
from clipbias.training.memory import StepPlan, device_limit, fit_task, plan_step
from clipbias.training.programs import LEAST_FILLED, ZERO_SHOT, Pack, Program, make_programs
from clipbias.training.progress import Progress, progress
from clipbias.training.results import Results, Row
from clipbias.training.settings import GridSettings, Recipe
from clipbias.training.shared import Shared
from clipbias.training.single import decoded_on_demand
from clipbias.training.workdir import CELLS, stable_hash
from clipbias.tuning import parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.method import Learnables
from clipbias.tuning.registry import source_digest
from clipbias.tuning.transfer import transfer


class Grid:
    """Runs packs."""

    def __init__(
        self,
        clip: Clip,
        recipe: Recipe,
        settings: GridSettings,
        load_dataset: Callable[[str], Dataset],
        workdir: Path,
        *,
        mesh: Mesh,
    ) -> None:
        self.clip, self.recipe, self.settings, self.workdir, self.mesh = clip, recipe, settings, workdir, mesh
        self.params = meshes.replicate(mesh, clip.params)
        self.results = Results(workdir / "results.jsonl")
        self.shared = Shared(clip, self.params, settings, load_dataset, mesh)

    def run(self, packs: Sequence[Pack]) -> list[Row]:
        """Runs every pack that is not finished. A pack that fails is reported and the rest goes on.

        Returns:
          The rows of `packs`, finished before or now.
        """
        wanted = [self.row(pack, seed) for pack in packs for seed in pack.seeds]
        todo = [p for p in packs if not all(self.results.finished(self.row(p, s)) for s in p.seeds)]
        cells = sum(len(pack.seeds) for pack in packs)
        done = cells - sum(len(pack.seeds) for pack in todo)
        if done:
            logging.info("%d of %d cells are finished already", done, cells)
        self._remove_finished()
        if jax.process_index() == 0:  # for those who read the results: which lines are of this configuration
            hashes = sorted({row["config_hash"] for row in wanted})
            write_text(self.workdir / CELLS, json.dumps(hashes) + "\n")
        programs = self._programs(todo)
        with progress(cells, done=done, unit="cell", title="cells") as bar:
            for program in programs:
                self.shared.keep_only(program.sources)
                for found in self._attempt(program.packs, bar):
                    self._report(found, bar)
        return [row for row in map(self.results.get, wanted) if row is not None]

    def _attempt(self, packs: tuple[Pack, ...], bar: Progress) -> Iterator[list[list[Row]]]:
        """The rows of each pack of a program, all at once; where it fails, pack by pack, so that none costs another."""
        began = time.monotonic()
        try:
            found = self._run_program(packs)
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:
            if len(packs) > 1:
                for pack in packs:
                    yield from self._attempt((pack,), bar)
                return
            (pack,) = packs
            found = [[self._failure(pack, seed, error) for seed in pack.seeds]]
            bar.say(f"failed: {pack.method} on {pack.dataset}, {pack.shots} shots: {sentence(error)}")
        seconds = (time.monotonic() - began) / sum(map(len, found))
        for row in itertools.chain(*found):
            row["seconds"] = round(seconds, 2)
        yield found
        if all(row["status"] == "ok" for row in itertools.chain(*found)):
            _remove_checkpoints(self._checkpoints(packs))

    def _report(self, found: Sequence[Sequence[Row]], bar: Progress) -> None:
        """Writes a program's rows in one go: a part of them would make another program of the rest."""
        self.results.append([row for row in itertools.chain(*found) if not self.results.finished(row)])
        for rows in found:
            accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
            shown = {name: rows[0][name] for name in ("method", "dataset", "shots")}
            if accuracies:
                shown["accuracy"] = round(sum(accuracies) / len(accuracies), 1)
            bar.advance(len(rows), shown)

    def _programs(self, packs: Sequence[Pack]) -> list[Program]:
        if not self.settings.side_by_side:
            return [Program((pack,)) for pack in packs]
        return make_programs(packs, self._kind, functools.partial(self._fits, limit=device_limit()))

    def _kind(self, pack: Pack) -> Hashable | None:
        """What must be equal for packs to share a program, or `None` where a pack runs alone."""
        if pack.method == ZERO_SHOT:
            return None
        try:
            source = self.shared.plans(pack)[0].source
            task = self.shared.task(pack, source)
        except Exception:  # it will fail again where failures are reported
            return None
        if task.classifier.templates > 1 and task.classifier.changes_text(task.shapes):
            return None
        images, batch = len(source.split("train")), self.recipe.batch_size
        return (pack.method, task.classifier, steps_per_epoch(images, batch), min(images, batch))

    def _fits(self, packs: Sequence[Pack], *, limit: int) -> bool:
        """Whether packs have about as many classes, and run as fast side by side as one by one within `limit` bytes."""
        tasks = [self.shared.task(pack, self.shared.plans(pack)[0].source) for pack in packs]
        counts = [len(task.class_names) for task in tasks]
        if min(counts) < LEAST_FILLED * max(counts) or not same_program(tasks):
            return False
        options: dict[str, Any] = dict(batch=self.recipe.batch_size, mesh=self.mesh, limit=limit)
        largest = max(tasks, key=lambda task: len(task.class_names))
        alone = plan_step(largest, runs=len(packs[0].seeds), **options)
        side_by_side = plan_step(largest, runs=sum(len(pack.seeds) for pack in packs), **options)
        return side_by_side.fits and (side_by_side.remat, side_by_side.chunks) == (alone.remat, alone.chunks)

    def row(self, pack: Pack, seed: int) -> Row:
        """What names one cell in the results."""
        return {
            "protocol": self.settings.protocol,
            "method": pack.method,
            "dataset": pack.dataset,
            "shots": pack.shots,
            "seed": seed,
            "config_hash": stable_hash(self._identity(pack)),
        }

    def _identity(self, pack: Pack) -> dict[str, Any]:
        """Everything that a number depends on, apart from the images themselves."""
        trained = {} if pack.method == ZERO_SHOT else dataclasses.asdict(self.recipe.at(pack.learning_rate))
        source = source_digest(pack.method)
        return {
            **({} if source is None else {"source": source}),
            **({"inputs": _plain(self.settings.inputs)} if self.settings.inputs else {}),
            "model": self.clip.fingerprint,
            "method": pack.method,
            "options": _plain(self.shared.options(pack)),
            "protocol": self.settings.protocol,
            "targets": self.settings.targets,
            "dataset": pack.dataset,
            "shots": pack.shots,
            "seeds": pack.seeds,
            "dtype": self.settings.dtype,
            "recipe": trained,
        }

    def _learning_rate(self, pack: Pack) -> float | None:
        return None if pack.method == ZERO_SHOT else self.recipe.at(pack.learning_rate).learning_rate

    def _checkpoints(self, packs: Sequence[Pack]) -> Path:
        return self.workdir / "checkpoints" / stable_hash([self._identity(pack) for pack in packs])

    def _mark(self, folder: Path, packs: Sequence[Pack]) -> None:
        """Says beside a folder of checkpoints which cells it serves."""
        if jax.process_index() == 0:
            cells = [self.row(pack, seed) for pack in packs for seed in pack.seeds]
            write_text(folder.with_suffix(".json"), json.dumps(cells))

    def _remove_finished(self) -> None:
        """Removes checkpoints that a run which was killed right after their cells' results has left."""
        for mark in (self.workdir / "checkpoints").glob("*.json"):
            with contextlib.suppress(ClipbiasError):  # one that is damaged says nothing
                cells = [cell for cell in read_json(mark, list) if isinstance(cell, dict)]
                if cells and all(map(self.results.finished, cells)):
                    _remove_checkpoints(mark.with_suffix(""))

    def _prepare(
        self, packs: Sequence[Pack], plans: Sequence[Sequence[protocols.Plan]]
    ) -> tuple[list[Run], StepPlan | None]:
        """The runs of a program, and how its steps run; `None` where there is nothing to train."""
        cells = [
            (pack, seed, plan.source)
            for pack, own in zip(packs, plans, strict=True)
            for seed, plan in zip(pack.seeds, own, strict=True)
        ]
        if packs[0].method == ZERO_SHOT:
            return [
                Run(self.shared.task(pack, source), source.split("test"), seed) for pack, seed, source in cells
            ], None
        skip = self.settings.on_image_error
        largest = max(cells, key=lambda cell: len(cell[2].class_names))
        _, step = fit_task(
            functools.partial(self.shared.task, largest[0], largest[2]),
            batch=self.recipe.batch_size,
            runs=len(cells),
            mesh=self.mesh,
            remat=self.settings.remat,
            chunks=self.settings.class_chunks,
        )
        runs = []
        for pack, seed, source in cells:
            task = self.shared.task(pack, source, **step.options)
            images = decoded_on_demand(source.split("train"), on_image_error=skip)
            runs.append(Run(task, images, seed, pack.learning_rate))
        return runs, step

    def _train(
        self, packs: Sequence[Pack], plans: Sequence[Sequence[protocols.Plan]]
    ) -> tuple[list[Run], Learnables, Sequence[float | None]]:
        """The runs of a program, their final learnables, and the loss of each one's last step."""
        runs, step = self._prepare(packs, plans)
        if step is None:
            return runs, initial_learnables(runs), [None] * len(runs)
        identities = [self._identity(pack) for pack in packs]
        self._mark(self._checkpoints(packs), packs)
        trained = train(
            self.clip,
            self.params,
            runs,
            self.recipe,
            mesh=self.mesh,
            folder=self._checkpoints(packs),
            identity=identities[0] if len(packs) == 1 else {"packs": identities},
            checkpoint_seconds=self.settings.checkpoint_seconds,
            metrics_folder=self.workdir / "runs" / self._program_name(packs),
            plan=step,
        )
        return runs, meshes.fetch(trained.learnables), trained.losses

    def forecast(self, packs: Sequence[Pack]) -> list[Forecast]:
        """What training and evaluating these packs would need, program by program; nothing is run."""
        found = []
        for program in self._programs(packs):
            plans = [self.shared.plans(pack) for pack in program.packs]
            runs, step = self._prepare(program.packs, plans)
            first = program.packs[0]
            more = f" and {len(program.packs) - 1} more packs" if len(program.packs) > 1 else ""
            test_images = sum(len(one.dataset.split("test")) for one in plans[0][0].evaluations)
            title = f"{first.method} on {first.dataset}, {first.shots} shots{more}"
            tasks = [run.task for run in runs]
            step = step or StepPlan("products", 1, 0, 0, 0)
            found.append(Forecast(title, tasks, self.recipe, step, len(runs[0].train), test_images, self.mesh))
        return found

    def _score(
        self, pack: Pack, evaluation: protocols.Evaluation, runs: Sequence[Run], learnables: Learnables
    ) -> list[dict[str, Any]]:
        """Accuracy of every run of a pack in one evaluation, whose classes may differ from those of training."""
        task = self.shared.task(pack, evaluation.dataset)
        learnables = transfer(runs[0].task, task, learnables, evaluation.source_labels, axis=1)
        learnables = meshes.place(self.mesh, learnables, meshes.RUN)
        same = [Run(task, run.train, run.seed) for run in runs]
        text, stacked = place_text(self.mesh, same, self.params, learnables)
        evaluator = self.shared.evaluator(pack, evaluation)
        return evaluator.accuracy(task.classifier, learnables, text, runs=len(runs), stacked_text=stacked)

    def _run_program(self, packs: Sequence[Pack]) -> list[list[Row]]:
        """Trains packs side by side and evaluates each; the rows of each."""
        plans = [self.shared.plans(pack) for pack in packs]
        runs, learnables, losses = self._train(packs, plans)
        found, start = [], 0
        for pack, own in zip(packs, plans, strict=True):
            part = slice(start, start + len(pack.seeds))
            start = part.stop
            mine = crop(jax.tree.map(lambda leaf, part=part: leaf[part], learnables), runs[part][0].task)
            found.append(self._rows(pack, own[0].evaluations, runs[part], mine, losses[part]))
        return found

    def _rows(
        self,
        pack: Pack,
        evaluations: Sequence[protocols.Evaluation],
        runs: Sequence[Run],
        learnables: Learnables,
        losses: Sequence[float | None],
    ) -> list[Row]:
        """A row for each run of a pack; its adapter is saved beside."""
        scores = {one.name: self._score(pack, one, runs, learnables) for one in evaluations}
        skipped = sum(self.shared.evaluator(pack, one).skipped for one in evaluations)
        rows = []
        for index, seed in enumerate(pack.seeds):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], learnables)
            counts = parameter_count(own)
            row = {**self.row(pack, seed), "status": "ok"}
            if len(evaluations) == 1:
                row |= scores[evaluations[0].name][index]
            else:
                row["accuracies"] = {name: values[index]["accuracy"] for name, values in scores.items()}
            row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
            row |= {"parameters": counts["total"], "loss": losses[index]}
            row["learning_rate"] = self._learning_rate(pack)
            if skipped:
                row["skipped_images"] = skipped
            if pack.method != ZERO_SHOT and jax.process_index() == 0:
                names = ("dataset", "shots", "seed", "protocol", "accuracy", "accuracies", "config_hash")
                notes = {name: row[name] for name in names if name in row}
                save_adapter(self.adapter_path(pack, seed), runs[0].task, own, method=pack.method, notes=notes)
            rows.append(row)
        return rows

    def adapter_path(self, pack: Pack, seed: int) -> Path:
        """Where the tuned adapter of a cell lies."""
        return self.workdir / "adapters" / f"{_pack_name(pack)}-seed{seed}.safetensors"

    def _program_name(self, packs: Sequence[Pack]) -> str:
        """Of the folder where a program's metrics lie."""
        name = f"{_pack_name(packs[0])}-seeds{'_'.join(map(str, packs[0].seeds))}"
        return name if len(packs) == 1 else f"{name}-and-{len(packs) - 1}-more"

    def _failure(self, pack: Pack, seed: int, error: Exception) -> Row:
        if not isinstance(error, ClipbiasError):
            logging.error("%s", "".join(traceback.format_exception(error)))
        told = {"status": "failed", "error": sentence(error), "learning_rate": self._learning_rate(pack)}
        return {**self.row(pack, seed), **told}


def _remove_checkpoints(folder: Path) -> None:
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".json").unlink(missing_ok=True)


def _pack_name(pack: Pack) -> str:
    rate = "" if pack.learning_rate is None else f"-rate{pack.learning_rate:g}"
    return f"{_file_name(pack.method)}-{_file_name(pack.dataset)}-{pack.shots}shots{rate}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
