"""Tunes one method on one dataset and evaluates it: a sweep of one run.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \\
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `results.jsonl`, the same as `result.json`, and
`adapter.safetensors`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from etils import epath

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import held_out
from clipbias.data.counts import accuracy_words
from clipbias.data.sources import OWN
from clipbias.errors import ClipbiasError
from clipbias.io import read_json
from clipbias.settings import as_json, convert
from clipbias.training import caution, selection
from clipbias.training.calibrate import calibrate_adapter
from clipbias.training.group import make_job
from clipbias.training.job import Logging
from clipbias.training.progress import Progress
from clipbias.training.score import score_test
from clipbias.training.spec import UNSELECTED, Row, RunSpec
from clipbias.training.sweep import sweep
from clipbias.training.sweep_context import SweepContext
from clipbias.training.workdir import ADAPTER, note_model, open_workdir, write_json
from configs.table1 import Table1Settings
from configs.train import TrainSettings
from experiments import common
from experiments.table1 import dry_run, prepare

_CONFIG = "configs/train.py"
RESULT = "result.json"
# What was selected on held-out images.
SELECTION = "selection.json"


def main(settings: TrainSettings, workdir: Path) -> None:
    grid = one_run(settings)
    if settings.dry_run:
        dry_run(grid)
        return
    with open_workdir(workdir, as_json(settings)):
        inputs = prepare(grid)
        context = inputs.context
        note_model(workdir, context.clip)
        (spec,) = inputs.specs((), inputs.rates)
        notes: Row = {}
        if settings.dataset in OWN:
            _keep_result(workdir, spec, context, is_open=True)
            listed = inputs.rates is not None and inputs.rates.of(spec.method, spec.dataset, spec.shots) is not None
            compares_rates = settings.recipe.learning_rate is None and not listed
            spec, notes = select(spec, context, workdir, compares_rates=compares_rates)
        before = _keep_result(workdir, spec, context)
        if spec.method != ZERO_SHOT:
            same = before if before.get("key") == spec.key else {}
            known = hosts.from_first(lambda: (same.get("zero_shot_accuracy"), same.get("images")))
            accuracy, images = known
            if accuracy is None or images is None:
                accuracy, images = zero_shot(context, spec)
            notes["zero_shot_accuracy"] = accuracy
            if hosts.is_first():
                common.tell(f"{ZERO_SHOT} on {spec.dataset}: {accuracy_words(accuracy, images)}")
        (row,) = sweep([spec], context, workdir, grid.recipe, single=True, notes={spec.key: notes})
        calibrates = settings.dataset in OWN if settings.calibrate is None else settings.calibrate
        calibrated = calibrate_adapter(workdir / ADAPTER, spec, context) if calibrates else ""
        if hosts.is_first():
            write_json(workdir / RESULT, row)
            common.tell(f"{row['method']} on {row['dataset']}: {accuracy_words(row['accuracy'], row['images'])}")
            common.tell(*caution.of_row(row, spec.make_method(), _classes(context, spec)))
            common.tell(f"{row['parameters']:,} parameters; adapter in {workdir / ADAPTER}")
            if calibrated:
                common.tell(calibrated)


def one_run(settings: TrainSettings) -> Table1Settings:
    """The settings of a sweep that has this run alone."""
    return convert(
        settings,
        Table1Settings,
        methods=(settings.method,),
        method_options={settings.method: settings.method_options},
        datasets=(settings.dataset,),
        shots=None if settings.shots is None else (settings.shots,),
        seeds=(settings.seed,),
        learning_rate=settings.recipe.with_default_rate().learning_rate,
        calibrate=False,
    )


def select(spec: RunSpec, context: SweepContext, workdir: Path, *, compares_rates: bool) -> tuple[RunSpec, Row]:
    """Selects the settings of a run on held-out images, or takes them from the work folder.

    Args:
      spec: of a run on pictures of a user's own.
      context: the model and the dataset.
      workdir: keeps the selection in `selection.json`.
      compares_rates: whether the learning rate is selected; else only what the method searches for.

    Returns:
      The run with the settings that were selected, and `choice` for its row; empty where nothing was selected.
    """
    checkpoints = workdir / "checkpoints" / f"selection-{spec.key}"
    logging = Logging(
        checkpoints=checkpoints,
        checkpoint_seconds=context.compute.checkpoint_seconds,
        progress=Progress(0, title=f"{spec.method} on {spec.dataset}"),
    )
    job = make_job((dataclasses.replace(spec, validation=UNSELECTED),), context, logging)
    held = held_out.hold_out_of(job.protocol, spec.seed, calibrates=True)
    if hosts.is_first() and (sentence := caution.nothing_held_out(job, held, compares_rates=compares_rates)):
        common.tell(sentence)
    if not selection.selects(job, compares_rates=compares_rates):
        return spec, {}
    spec = dataclasses.replace(spec, validation=held_out.POLICY)
    stored = hosts.from_first(lambda: _stored_selection(workdir, spec))
    if not stored:
        selected = selection.select(job, held, compares_rates=compares_rates)
        if selected is None:
            return spec, {}
        stored = {"key": spec.key, "learning_rate": selected.best.learning_rate, "choice": selected.note}
        if hosts.is_first():
            common.tell(str(selected))
            write_json(workdir / SELECTION, stored)
            epath.Path(checkpoints).rmtree(missing_ok=True)
    choice = stored["choice"]
    recipe = spec.recipe and spec.recipe.with_learning_rate(stored["learning_rate"])
    return dataclasses.replace(spec, recipe=recipe, options={**spec.options, **choice["options"]}), {"choice": choice}


def _stored_selection(workdir: Path, spec: RunSpec) -> dict[str, Any]:
    """What an earlier process selected for the same run; empty if it did not."""
    path = workdir / SELECTION
    stored = read_json(path, dict) if path.exists() else {}
    return stored if stored.get("key") == spec.key else {}


def _classes(context: SweepContext, spec: RunSpec) -> int:
    return len(context.datasets[spec.dataset].class_names)


def zero_shot(context: SweepContext, spec: RunSpec) -> tuple[float, int]:
    """The accuracy of the frozen model on the run's test images, in percent, and their number."""
    job = make_job((dataclasses.replace(spec, method=ZERO_SHOT, options={}, recipe=None),), context)
    result = score_test(job, {}, job.protocol.evaluations[0])
    return float(result.scores[0]["accuracy"]), int(result.scores[0]["images"])


def _keep_result(workdir: Path, spec: RunSpec, context: SweepContext, *, is_open: bool = False) -> dict[str, Any]:
    """The result that is there. Refuses one of other settings, unless that run was no success (`caution.of_row`).

    Args:
      workdir: of the run.
      spec: of the run.
      context: with the dataset.
      is_open: whether settings are still to be selected; these are not compared.

    Raises:
      ClipbiasError: it names the settings.
    """
    path = workdir / RESULT
    before = read_json(path, dict) if path.exists() else {}
    facts = spec.facts()
    if is_open and before:
        selected = {name: before[name] for name in ("learning_rate", "options", "validation")}
        facts |= selected | {"recipe": facts["recipe"] | {"learning_rate": before["learning_rate"]}}
    other = [name for name, value in facts.items() if name in before and before[name] != value]
    if other and not caution.of_row(before, spec.make_method(), _classes(context, spec)):
        raise ClipbiasError(
            f"{workdir} holds the adapter of a run with other settings ({', '.join(other)}); choose another --workdir."
        )
    return before


if __name__ == "__main__":
    common.run(main, _CONFIG)
