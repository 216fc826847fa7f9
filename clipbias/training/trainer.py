"""One pack from its draws to its rows: prepare, train, evaluate, and save the adapters.

How a pack runs depends on the configuration and on the size of the device alone, so that an interrupted one ends with
the same numbers to the last bit.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset, protocols
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training import processes
from clipbias.training.cache import Cache
from clipbias.training.evaluation_plan import fit_evaluation
from clipbias.training.features import epoch_features
from clipbias.training.identity import earlier_identity, identity
from clipbias.training.loop import Run, Trained, each_run, initial_learnables, rows_per_step, train
from clipbias.training.metrics import METRICS
from clipbias.training.packs import Pack
from clipbias.training.plan import StepPlan, plan_step
from clipbias.training.predictions import predictions_name, save_predictions
from clipbias.training.progress import Progress
from clipbias.training.results import Row
from clipbias.training.settings import AUTO, GridSettings
from clipbias.training.stages import train_stages
from clipbias.training.step import place_text
from clipbias.training.timing import Stopwatch, step_seconds
from clipbias.training.workdir import ADAPTER, stable_hash
from clipbias.tuning import Samples, Task, parameter_count
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import one_run
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.transfer import transfer

# What differs between two equal runs, and so is in their results but not in their adapters.
VOLATILE = ("seconds", "training_seconds", "seconds_per_image", "waiting_share")


class Learned(NamedTuple):
    """What the cells of a pack, a run each, learned: on the host, leading axis `R`; and what training took and told.

    `trained` is `None` where nothing is trained.
    """

    task: Task
    runs: list[Run]
    learnables: Learnables
    trained: Trained | None
    seconds: list[float]


class Trainer:
    """Trains and evaluates one pack after another, names their cells, and knows where their files lie."""

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
        own_folder: Path | None = None,
    ) -> None:
        """Prepares nothing yet; arguments as in `grid.Grid`."""
        self.clip, self.recipe, self.settings, self.workdir, self.mesh = clip, recipe, settings, workdir, mesh
        self.single, self.own_folder, self.rates = single, own_folder or workdir, settings.rates
        self.params = meshes.place_weights(mesh, clip.params, settings.dtype, shapes=not meshes.is_there(mesh))
        self.cache = Cache(clip, self.params, settings, load_dataset, mesh)

    @processes.agreed()
    def train(self, pack: Pack) -> list[Row]:
        """Prepares, trains and evaluates the cells of a pack; saves their adapters and returns their rows."""
        draws = self.cache.plans(pack)
        processes.same(f"the images of {pack.dataset}", self.cache.image_hash(pack))
        task, runs, learnables, trained, spent = self.learn(pack, draws)
        facts = [
            self._facts(trained, run, index) | {"training_seconds": round(seconds, 4)}
            for index, (run, seconds) in enumerate(zip(runs, spent, strict=True))
        ]
        return self.test(pack, draws, task, learnables, facts)

    def test(
        self, pack: Pack, draws: Sequence[protocols.Plan], task: Task, learnables: Learnables, facts: Sequence[Row]
    ) -> list[Row]:
        """Evaluates what the cells of a pack learned; saves their adapters and returns their rows.

        Args:
          pack, draws: as in `learn`.
          task: of training.
          learnables: on the host, leading axis `R`.
          facts: of each cell, what its row says of the training.
        """
        scores = {one.name: self._score(pack, one, task, learnables) for one in draws[0].evaluations}
        rows = []
        for index, (rate, seed) in enumerate(pack.cells):
            own = one_run(learnables, index)
            row = self._row_of(pack, rate, seed, {name: found[index] for name, found in scores.items()}, own)
            rows.append(row | facts[index])
            self.save(pack, rate, seed, task, own, rows[-1])
        return rows

    def save(self, pack: Pack, rate: float | None, seed: int, task: Task, own: Learnables, row: Row) -> None:
        """Saves what a cell learned, where it learned anything, with what its row says."""
        if (jax.tree.leaves(own) or self.single) and jax.process_index() == 0:
            notes = {name: value for name, value in row.items() if name not in VOLATILE}
            save_adapter(self.adapter_path(pack, rate, seed), task, own, notes=notes)

    def learn(self, pack: Pack, draws: Sequence[protocols.Plan]) -> Learned:
        """Prepares and trains the cells of a pack; `draws` are `cache.plans(pack)`."""
        task, runs, plan = self.prepare(pack, draws)
        samples = self.cache.samples(pack, draws, task, runs)
        trained, host = None, Stopwatch()
        with host:
            learnables = initial_learnables(task, runs, samples)
        if plan is not None:
            trained = self._train_stages(pack, task, runs, plan, learnables)
            learnables = meshes.fetch(trained.learnables)
            if samples is not None and isinstance(task.method, FeatureMethod):
                with host:
                    learnables = each_run(task.method.finish, learnables, samples)
        spent = self._training_seconds(pack, runs, samples, host, trained is not None)
        return Learned(task, runs, learnables, trained, spent)

    def prepare(self, pack: Pack, draws: Sequence[protocols.Plan]) -> tuple[Task, list[Run], StepPlan | None]:
        """The task of a pack, its runs in the order of its cells, and how a step runs; no plan without training."""
        source = draws[0].source
        task = self.cache.task(pack, source)
        if not task.method.draws:
            return task, [Run(source.split("test"), seed) for _, seed in pack.cells], None
        images = self.cache.train_images(pack, draws)
        readable = [stable_hash([*one.split.keys]) for one in images.values()]
        processes.same(f"which images of {pack.dataset} can be read", readable)
        runs = [Run(images[seed], seed, rate) for rate, seed in pack.cells]
        if not (task.method.trains and jax.tree.leaves(task.shapes)):
            return task, runs, None
        bound, plan = self.plan_stage(pack, source, runs, *self.stages(pack)[0])
        if bound.method is not task.method:
            return self.cache.task(pack, source, **plan.options), runs, plan
        return bound, runs, plan

    def plan_stage(
        self, pack: Pack, source: Dataset, runs: Sequence[Run], method: Method, recipe: Recipe
    ) -> tuple[Task, StepPlan]:
        """The task of one stage of a pack's training, and how its steps run."""
        task, plan = plan_step(
            lambda **memory: self.cache.task(pack, source, method, **memory),
            recipe,
            rows=rows_per_step([run.train for run in runs], recipe),
            runs=meshes.filled(self.mesh, len(runs)),
            mesh=self.mesh,
            remat=self.settings.remat,
            chunks=self.settings.class_chunks,
            micro_batch=self.settings.micro_batch,
            images=len(runs[0].train),
        )
        asked = self.settings.remat, self.settings.class_chunks, self.settings.micro_batch
        given = asked != (AUTO, 0, 0)
        if not (given or plan.is_fastest) and len(pack.learning_rates) > 1:  # one by one they may run the fastest way
            raise ClipbiasError("the learning rates do not fit the memory side by side.")
        return task, plan

    def recipe_for(self, pack: Pack) -> Recipe:
        """How the runs of a pack are trained, but for learning rates of their own."""
        return self.cache.method(pack).recipe_for(self.recipe, pack.shots).at(self.rates.of(pack))

    def stages(self, pack: Pack) -> Sequence[tuple[Method, Recipe]]:
        """The trainings of a pack that follow one another, mostly one."""
        return self.cache.method(pack).stages(self.recipe_for(pack))

    def _training_seconds(
        self, pack: Pack, runs: Sequence[Run], samples: Sequence[Samples] | None, host: Stopwatch, trained: bool
    ) -> list[float]:
        """What each cell's training took: its features, and equal shares of what all cells of the pack ran together."""
        lengths = [recipe.total_steps(len(runs[0].train)) for _, recipe in self.stages(pack)] if trained else []
        shared = step_seconds(self._metrics(pack) / METRICS, lengths)
        if samples is None:
            return [shared / len(runs)] * len(runs)
        sampling = sampling_of(self.cache.method(pack))
        assert sampling is not None
        passes = max(sampling.passes, 1)
        if trained and sampling.training == "fresh":
            passes += self.recipe_for(pack).total_epochs(len(runs[0].train))
        counts = [passes * len(one.labels) + (0 if one.validation is None else len(one.validation)) for one in samples]
        each = [self.cache.features(pack, run, sampling).seconds(n) for run, n in zip(runs, counts, strict=True)]
        return [own + (shared + host.seconds) / len(runs) for own in each]

    def _metrics(self, pack: Pack) -> Path:
        return self.workdir if self.single else self.own_folder / "runs" / pack.folder_name

    def _train_stages(self, pack: Pack, task: Task, runs: Sequence[Run], plan: StepPlan, start: Learnables) -> Trained:
        method, stages, source = task.method, self.stages(pack), self.cache.plans(pack)[0].source
        steps = [recipe.total_steps(len(runs[0].train)) for _, recipe in stages]

        def train_stage(stage: int, start: Learnables) -> tuple[Task, Trained]:
            trained, recipe = stages[stage]
            bound = task, plan
            if trained is not method:
                bound = self.plan_stage(pack, source, runs, trained, recipe)
            if len(stages) == 1:
                return bound[0], self._train_stage(pack, *bound, runs, recipe, start)
            counted = {"before": sum(steps[:stage]), "whole": sum(steps)}
            return bound[0], self._train_stage(pack, *bound, runs, recipe, start, stage, counted)

        return train_stages(method, len(stages), start, train_stage, params=self.params, mesh=self.mesh)

    def _train_stage(
        self,
        pack: Pack,
        task: Task,
        plan: StepPlan,
        runs: Sequence[Run],
        recipe: Recipe,
        start: Learnables,
        stage: int | None = None,
        steps: Mapping[str, int] | None = None,
    ) -> Trained:
        sampling, features = sampling_of(task.method), None
        if sampling is not None:
            epochs = recipe.total_epochs(len(runs[0].train))
            features = [epoch_features(self.cache.features(pack, run, sampling), sampling, epochs) for run in runs]
        identities = [self.identity(one) for one in pack.by_rate]
        own = identities[0] if len(identities) == 1 else {"packs": identities}
        named, folder = [own | {"images": images} for images in self.cache.image_hashes(pack)], self.checkpoints(pack)
        if stage is not None:
            named, folder = [one | {"stage": stage} for one in named], folder / f"stage{stage}"
        earliest = earlier_identity(task, pack, runs[0], recipe) if self.single else own
        return train(
            task,
            self.params,
            runs,
            recipe,
            mesh=self.mesh,
            start=start,
            features=features,
            folder=folder,
            identity=named[0],
            earlier=[*named[1:], earliest],
            checkpoint_seconds=self.settings.checkpoint_seconds,
            progress=Progress(0, title=f"{pack.method} on {pack.dataset}") if self.single else None,
            metrics_folder=self._metrics(pack),
            trackers=self.settings.trackers,
            profile=self.settings.profile == "steps",
            plan=plan,
            workers=self.cache.workers,
            **(steps or {}),
        )

    def _score(
        self, pack: Pack, evaluation: protocols.Evaluation, trained: Task, learnables: Learnables
    ) -> list[dict[str, Any]]:
        """What each run of a pack scores in one evaluation, whose classes may differ from those of training."""
        count = meshes.filled(self.mesh, len(pack.cells))
        task = fit_evaluation(
            lambda **memory: self.cache.task(pack, evaluation.dataset, **memory), runs=count, mesh=self.mesh
        )
        learnables = transfer(trained, task, learnables, evaluation.source_labels, axis=1)
        placed = meshes.place(self.mesh, meshes.fill(learnables, count), meshes.RUN)
        evaluator = self.cache.evaluator(evaluation)
        text = place_text(self.mesh, task, self.params)
        validation = self.cache.validation_evaluator(pack, evaluation)
        scores = evaluator.accuracy(task.classifier, placed, text, runs=count, validation=validation)
        scores = scores[: len(pack.cells)]  # behind them is what fills up the runs
        with processes.agreed():
            if jax.process_index() == 0 and evaluator.predicted is not None:
                split = evaluation.dataset.split("test")
                for index, (rate, seed) in enumerate(pack.cells):
                    name = self._scored_as(pack, rate, seed, evaluation.name)
                    own, predicted = one_run(learnables, index), evaluator.predicted[index]
                    save_predictions(self.workdir, name, task, own, pack.method, split, predicted)
        told = {"seconds_per_image": evaluator.seconds_per_image}
        told |= {"skipped_images": evaluator.skipped} if evaluator.skipped else {}
        return [score | told for score in scores]

    def _scored_as(self, pack: Pack, rate: float | None, seed: int, evaluation: str) -> str:
        return evaluation if self.single else f"{pack.name(rate)}-seed{seed}-{evaluation}"

    def _row_of(
        self, pack: Pack, rate: float | None, seed: int, scores: dict[str, dict[str, Any]], learnables: Learnables
    ) -> Row:
        row = self.row(pack, rate, seed) | {"status": "ok", "image_hash": self.cache.image_hash(pack)}
        row["predictions"] = {name: predictions_name(self._scored_as(pack, rate, seed, name)) for name in scores}
        if len(scores) == 1:
            row |= next(iter(scores.values()))
        else:
            row["tested_images"] = {name: score["images"] for name, score in scores.items()}
            row["seconds_per_image"] = next(iter(scores.values()))["seconds_per_image"]
            for key, values in (("accuracies", "accuracy"), ("calibrations", "calibration")):
                row[key] = {name: score[values] for name, score in scores.items()}
            if skipped := sum(score.get("skipped_images", 0) for score in scores.values()):
                row["skipped_images"] = skipped
        counts = parameter_count(learnables)
        row |= {f"parameters_{part}": counts[part] for part in ("vision", "text", "shared")}
        row |= {"parameters": counts["total"], "model": self.clip.name, "dtype": self.settings.dtype}
        return row | self.rate(pack, rate)

    def _facts(self, trained: Trained | None, run: Run, index: int) -> Row:
        if trained is None:
            return {"loss": None}
        facts: Row = {"loss": trained.losses[index], "steps": trained.steps}
        if isinstance(run.train, Images) and run.train.unreadable:
            facts["skipped_training_images"] = len(run.train.unreadable)
        return facts | {"waiting_share": round(trained.waiting_share, 4)}

    def rate(self, pack: Pack, rate: float | None) -> Row:
        """The learning rate, and of a recipe of the method's own what it does otherwise than the common one."""
        if not self.cache.method(pack).trains:
            return {"learning_rate": None}
        recipe = self.recipe_for(pack)
        own = recipe.differences(self.recipe.at(self.rates.of(pack)))
        return {"learning_rate": recipe.at(rate).learning_rate, **({"recipe": own} if own else {})}

    def row(self, pack: Pack, rate: float | None, seed: int) -> Row:
        """What names one cell in the results."""
        own = dataclasses.replace(pack, learning_rates=(rate,))
        names = {"protocol": self.settings.protocol, "method": pack.method, "dataset": pack.dataset}
        return {**names, "shots": pack.shots, "seed": seed, "config_hash": stable_hash(self.identity(own))}

    def identity(self, pack: Pack) -> dict[str, Any]:
        recipe = self.recipe_for(pack).at(pack.learning_rates[0]) if self.cache.method(pack).trains else None
        return identity(pack, self.clip, self.cache.options(pack), self.settings, recipe)

    def adapter_path(self, pack: Pack, rate: float | None, seed: int) -> Path:
        """Where the tuned adapter of a cell lies."""
        if self.single:
            return self.workdir / ADAPTER
        return self.workdir / "adapters" / f"{pack.name(rate)}-seed{seed}.safetensors"

    def checkpoints(self, pack: Pack) -> Path:
        folder, named = self.own_folder / "checkpoints", [self.identity(one) for one in pack.by_rate]
        return folder if self.single else folder / stable_hash([*named, "tries"] if pack.tries else named)

    def remove_checkpoints(self, pack: Pack) -> None:
        if jax.process_index() == 0:
            for part in (pack, *(pack.by_rate if len(pack.learning_rates) > 1 else ())):
                shutil.rmtree(self.checkpoints(part), ignore_errors=True)
