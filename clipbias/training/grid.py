"""Methods x datasets x shots x seeds: what a Table 1 is made of.

A *cell* is one number of the table. Cells that differ in the seed only have equal shapes and train side by side as a
*pack*. Packs depend on the configuration alone, never on what is finished, so that an interrupted grid ends with the
same numbers to the last bit.
"""

import dataclasses
import re
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset, protocols
from clipbias.errors import ClipbiasError, sentence
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import Evaluator
from clipbias.training.interruption import Interrupted
from clipbias.training.loop import Run, initial_learnables, place_text, train
from clipbias.training.progress import progress
from clipbias.training.results import Results, Row
from clipbias.training.settings import Recipe
from clipbias.training.single import decoded_on_demand
from clipbias.training.workdir import stable_hash
from clipbias.tuning import Task, parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.method import Learnables
from clipbias.tuning.transfer import transfer

ZERO_SHOT = "zero_shot"


@dataclasses.dataclass(frozen=True)
class Pack:
    """Cells trained in one program: one method on one dataset with one number of shots, several seeds."""

    method: str
    dataset: str
    shots: int
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """What all cells of a grid have in common besides the recipe.

    Attributes:
      method_options: options by method name.
      dtype: compute type.
      eval_batch_size: images per evaluation step.
      checkpoint_seconds: least time between two checkpoints of a pack.
      on_image_error: "raise" or "skip" images that cannot be read.
      protocol: a name of `data.protocols.PROTOCOLS`.
      targets: datasets that a protocol evaluates on besides; `None` takes the literature's.
    """

    method_options: Mapping[str, Mapping[str, Any]]
    dtype: str
    eval_batch_size: int
    checkpoint_seconds: float
    on_image_error: str
    protocol: str = "few_shot"
    targets: tuple[str, ...] | None = None


def plan(
    methods: Sequence[str],
    datasets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    runs_per_program: int,
) -> list[Pack]:
    """All packs, dataset by dataset. Zero-shot has nothing to train and is one cell per dataset."""
    size = runs_per_program if runs_per_program > 0 else len(seeds)
    packs = []
    for dataset in datasets:
        for method in methods:
            if method == ZERO_SHOT:
                packs.append(Pack(method, dataset, 0, (0,)))
                continue
            for count in shots:
                packs += [Pack(method, dataset, count, tuple(seeds[i : i + size])) for i in range(0, len(seeds), size)]
    return packs


class Grid:
    """Runs packs, keeping what they share: the weights on the mesh, one dataset's images, tasks."""

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
        self._load_dataset = load_dataset
        self._source = ""
        self._datasets: dict[str, Dataset] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._tasks: dict[tuple[Any, ...], Task] = {}

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
        with progress(cells, done=done, unit="cell", title="cells") as bar:
            for pack in todo:
                began = time.monotonic()
                try:
                    rows = self._run_pack(pack)
                except (Interrupted, KeyboardInterrupt):
                    raise
                except Exception as error:  # one cell must not cost the others
                    rows = [self._failure(pack, seed, error) for seed in pack.seeds]
                    bar.say(f"failed: {pack.method} on {pack.dataset}, {pack.shots} shots: {sentence(error)}")
                for row in rows:
                    row["seconds"] = round((time.monotonic() - began) / len(rows), 2)
                self.results.append([row for row in rows if not self.results.finished(row)])
                if jax.process_index() == 0 and all(row["status"] == "ok" for row in rows):
                    shutil.rmtree(self._checkpoints(pack), ignore_errors=True)
                accuracies = [row["accuracy"] for row in rows if "accuracy" in row]
                shown = {"method": pack.method, "dataset": pack.dataset, "shots": pack.shots}
                if accuracies:
                    shown["accuracy"] = round(sum(accuracies) / len(accuracies), 1)
                bar.advance(len(rows), shown)
        return [row for row in map(self.results.get, wanted) if row is not None]

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
        trained = {} if pack.method == ZERO_SHOT else dataclasses.asdict(self.recipe)
        return {
            "model": self.clip.fingerprint,
            "method": pack.method,
            "options": _plain(self._options(pack)),
            "protocol": self.settings.protocol,
            "targets": self.settings.targets,
            "dataset": pack.dataset,
            "shots": pack.shots,
            "seeds": pack.seeds,
            "dtype": self.settings.dtype,
            "recipe": trained,
        }

    def _checkpoints(self, pack: Pack) -> Path:
        return self.workdir / "checkpoints" / stable_hash(self._identity(pack))

    def _options(self, pack: Pack) -> dict[str, Any]:
        options = self.settings.method_options
        return {**options.get(pack.method, {}), **options.get(f"{pack.method}@{pack.dataset}", {})}

    def _plans(self, pack: Pack) -> list[protocols.Plan]:
        """One plan per seed. The images of one source are freed before the next is loaded."""
        if self._source != pack.dataset:
            self._datasets.clear()
            self._evaluators.clear()
            self._tasks.clear()
            self._source = pack.dataset

        def load(name: str) -> Dataset:
            if name not in self._datasets:
                self._datasets[name] = self._load_dataset(name)
            return self._datasets[name]

        shots = max(pack.shots, 1)  # zero-shot takes from a plan what to evaluate on, not what to train on
        protocol = self.settings.protocol if pack.shots or pack.method == ZERO_SHOT else "full"
        return [
            protocols.make_plan(protocol, pack.dataset, load, shots=shots, seed=seed, targets=self.settings.targets)
            for seed in pack.seeds
        ]

    def _evaluator(self, evaluation: protocols.Evaluation) -> Evaluator:
        if evaluation.name not in self._evaluators:
            self._evaluators[evaluation.name] = Evaluator(
                self.clip,
                self.params,
                evaluation.dataset.split("test"),
                mesh=self.mesh,
                batch_size=self.settings.eval_batch_size,
                on_error=self.settings.on_image_error,
            )
        return self._evaluators[evaluation.name]

    def _task(self, pack: Pack, dataset: Dataset) -> Task:
        key = (pack.method, dataset.class_names, dataset.template)
        if key not in self._tasks:
            self._tasks[key] = Task(
                self.clip,
                pack.method,
                dataset.class_names,
                template=dataset.template,
                dtype=self.settings.dtype,
                groups=self.mesh.shape[meshes.DATA],
                **self._options(pack),
            )
        return self._tasks[key]

    def _train(
        self, pack: Pack, plans: Sequence[protocols.Plan]
    ) -> tuple[list[Run], Learnables, Sequence[float | None]]:
        """The runs of a pack, their final learnables on the mesh, and the loss of each one's last step."""
        sources = [plan.source for plan in plans]
        task = self._task(pack, sources[0])
        if pack.method == ZERO_SHOT:
            runs = [Run(task, source.split("test"), seed) for source, seed in zip(sources, pack.seeds, strict=True)]
            return runs, meshes.place(self.mesh, initial_learnables(runs), meshes.RUN), [None] * len(runs)
        skip = self.settings.on_image_error
        images = [decoded_on_demand(source.split("train"), on_image_error=skip) for source in sources]
        runs = [Run(task, one, seed) for one, seed in zip(images, pack.seeds, strict=True)]
        name = f"{_file_name(pack.method)}-{_file_name(pack.dataset)}-{pack.shots}shots"
        trained = train(
            self.clip,
            self.params,
            runs,
            self.recipe,
            mesh=self.mesh,
            folder=self._checkpoints(pack),
            identity=self._identity(pack),
            checkpoint_seconds=self.settings.checkpoint_seconds,
            metrics_folder=self.workdir / "runs" / f"{name}-seeds{'_'.join(map(str, pack.seeds))}",
        )
        return runs, trained.learnables, trained.losses

    def _score(
        self, pack: Pack, evaluation: protocols.Evaluation, runs: Sequence[Run], learnables: Learnables
    ) -> list[dict[str, Any]]:
        """Accuracy of every run of a pack in one evaluation, whose classes may differ from those of training."""
        task = self._task(pack, evaluation.dataset)
        learnables = transfer(runs[0].task, task, learnables, evaluation.source_labels, axis=1)
        same = [Run(task, run.train, run.seed) for run in runs]
        text, stacked = place_text(self.mesh, same, self.params, learnables)
        evaluator = self._evaluator(evaluation)
        return evaluator.accuracy(task.classifier, learnables, text, runs=len(runs), stacked_text=stacked)

    def _run_pack(self, pack: Pack) -> list[Row]:
        plans = self._plans(pack)
        runs, learnables, losses = self._train(pack, plans)
        evaluations = plans[0].evaluations
        scores = {one.name: self._score(pack, one, runs, learnables) for one in evaluations}
        skipped = sum(self._evaluators[one.name].skipped for one in evaluations)
        host = meshes.fetch(learnables)
        rows = []
        for index, seed in enumerate(pack.seeds):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], host)
            counts = parameter_count(own)
            row = {**self.row(pack, seed), "status": "ok"}
            if len(evaluations) == 1:
                row |= scores[evaluations[0].name][index]
            else:
                row["accuracies"] = {name: values[index]["accuracy"] for name, values in scores.items()}
            row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
            row |= {"parameters": counts["total"], "loss": losses[index]}
            row["learning_rate"] = None if pack.method == ZERO_SHOT else self.recipe.learning_rate
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
        name = f"{_file_name(pack.method)}-{_file_name(pack.dataset)}-{pack.shots}shots-seed{seed}.safetensors"
        return self.workdir / "adapters" / name

    def _failure(self, pack: Pack, seed: int, error: Exception) -> Row:
        if not isinstance(error, ClipbiasError):
            logging.error("%s", "".join(traceback.format_exception(error)))
        return {**self.row(pack, seed), "status": "failed", "error": sentence(error)}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
