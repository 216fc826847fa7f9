"""Trials of learning rates: trained like any pack, judged on validation images, and tested once one is chosen."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clipbias import hosts
from clipbias.data import protocols
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.evaluation_plan import fit_evaluation
from clipbias.training.packs import Pack
from clipbias.training.results import Row
from clipbias.training.step import place_text
from clipbias.training.trainer import VOLATILE, Trainer
from clipbias.tuning import Task
from clipbias.tuning.adapter import load_adapter
from clipbias.tuning.learnables import flatten, one_run, stack_runs, unflatten
from clipbias.tuning.method import Learnables

FOLDER = "trials"
# What a row of a trial says of the training and of validation images, which the row of its test says, too.
KEPT = (
    *("loss", "steps", "training_seconds", "waiting_share", "skipped_training_images", "seconds"),
    *("validation_accuracy", "validation_correct", "validation_images", "validation_loss"),
)


class TrialTrainer(Trainer):
    """A trainer whose packs may be trials: these see no test image, and what they learned lies in `trials/`."""

    def test(
        self, pack: Pack, draws: Sequence[protocols.Plan], task: Task, learnables: Learnables, facts: Sequence[Row]
    ) -> list[Row]:
        """As of any pack; of a trial on validation images."""
        if not pack.tries:
            return super().test(pack, draws, task, learnables, facts)
        seeds, count = [seed for _, seed in pack.cells], meshes.filled(self.mesh, len(pack.cells))
        fitting = fit_evaluation(
            lambda **memory: self.cache.task(pack, draws[0].source, **memory), runs=count, mesh=self.mesh
        )
        placed = meshes.place(self.mesh, meshes.fill(learnables, count), meshes.RUN)
        text = place_text(self.mesh, fitting, self.params)
        found: dict[int, dict[str, Any]] = {}
        for evaluator, whose in self.cache.choice_evaluators(pack):
            scores = evaluator.validate(fitting.classifier, placed, text, runs=count)
            found |= {index: scores[index] for index, seed in enumerate(seeds) if seed in whose}
        rows = []
        for index, (rate, seed) in enumerate(pack.cells):
            row = self.row(pack, rate, seed) | {"status": "ok", "image_hash": self.cache.image_hash(pack)}
            row |= {f"validation_{name}": value for name, value in found[index].items()}
            rows.append(row | facts[index] | self.rate(pack, rate))
            self.save(pack, rate, seed, task, one_run(learnables, index), rows[-1])
        return rows

    def adapter_path(self, pack: Pack, rate: float | None, seed: int) -> Path:
        """Where the tuned adapter of a cell, or what a trial learned, lies."""
        path = super().adapter_path(pack, rate, seed)
        return self.workdir / FOLDER / path.name if pack.tries else path

    def test_trials(self, pack: Pack, trials: Sequence[Row], facts: Mapping[str, Any]) -> list[Row] | None:
        """Evaluates what trials learned at the rate that was chosen.

        Args:
          pack: whose learning rate is that of `rates`.
          trials: the rows of its trials at that rate, in the order of its seeds.
          facts: what all rows say of the choice.

        Returns:
          The rows; `None` where what the trials learned is not there any more, or of other images.
        """
        draws = self.cache.plans(pack)
        hosts.assert_same(f"the images of {pack.dataset}", self.cache.image_hash(pack))
        task = self.cache.task(pack, draws[0].source)
        learnables = self._learned(dataclasses.replace(pack, tries=True), task, trials)
        if learnables is None:
            return None
        kept = [{name: row[name] for name in KEPT if name in row} | dict(facts) for row in trials]
        return super().test(pack, draws, task, learnables, kept)

    def _learned(self, pack: Pack, task: Task, trials: Sequence[Row]) -> Learnables | None:
        """What trials learned, leading axis `R`, from their files as the first process sees them."""
        stacked: Learnables = {}

        def read() -> dict[str, tuple[list[int], str]] | None:
            nonlocal stacked
            runs = []
            for row in trials:
                path = self.adapter_path(pack, row["learning_rate"], row["seed"])
                try:
                    adapter = load_adapter(path) if jax.tree.leaves(task.shapes) else None
                except ClipbiasError as error:
                    logging.info("%s; it is trained again", error)
                    return None
                named = {name: value for name, value in row.items() if name not in VOLATILE}
                if adapter is not None and adapter.notes != json.loads(json.dumps(named)):
                    logging.info("%s is of another trial; it is trained again", path)
                    return None
                runs.append({} if adapter is None else adapter.learnables)
            stacked = stack_runs(runs)
            return {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in flatten(stacked).items()}

        shapes = hosts.from_first(read)
        if shapes is None:
            return None
        like = unflatten({name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()})
        return meshes.from_first(stacked, like)

    def remove_trials(self) -> None:
        """Removes what trials learned, once nothing of it is needed; their rows stay."""
        if jax.process_index() == 0:
            shutil.rmtree(self.workdir / FOLDER, ignore_errors=True)
