"""Tunes one method on one dataset and evaluates it.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \\
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `results.jsonl`, the same as `result.json`, and
`adapter.safetensors`.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data.sources import USER_DATASETS
from clipbias.errors import ClipbiasError
from clipbias.intervals import accuracy_words
from clipbias.io import read_json
from clipbias.settings import as_json
from clipbias.training.context import SweepContext
from clipbias.training.progress import Progress
from clipbias.training.rates import Rates
from clipbias.training.run import run_group, validation_of
from clipbias.training.select import cautions_of_row
from clipbias.training.spec import Group, Row, RunSpec
from clipbias.training.sweep import SweepAxes, make_specs, write_group, write_results
from clipbias.training.workdir import SweepPaths, note_model, note_runs, open_workdir, write_json
from configs.train import TrainSettings
from experiments import common
from experiments.table1 import dry_run, given_options, prepare

RESULT = "result.json"


def main(settings: TrainSettings, workdir: Path) -> None:
    if settings.dry_run:
        dry_run(settings.topology, lambda devices: plan(settings, devices))
        return
    with open_workdir(workdir, as_json(settings)):
        context, spec, rates = open_run(settings)
        hosts.assert_same("the run", spec.key)
        note_model(workdir, context.clip)
        note_runs(workdir, 1)
        is_own = settings.dataset in USER_DATASETS
        calibrates = is_own if settings.calibrate is None else settings.calibrate
        classes = len(context.datasets[spec.dataset].class_names)
        paths = SweepPaths(workdir, {}, single=True)
        paths.refuse_other_kind()
        # Only a user's own pictures compare rates: a benchmark's protocol names the images that select. A rate that is
        # given, or was selected before, is not selected again.
        compares_rates = None
        if is_own:
            known = rates is not None and rates.of(spec.method, spec.dataset, spec.shots) is not None
            compares_rates = settings.recipe.learning_rate is None and not known
        if rates is not None and not compares_rates:
            common.tell(*rates.unlisted([spec], settings.recipe.with_default_rate()))
        # One process reads for all, so that either all of them train or none.
        row = hosts.from_first(
            lambda: finished_row(paths, spec, context, compares_rates=compares_rates, calibrates=calibrates)
        )
        if not row:
            began = time.monotonic()
            common_recipe = settings.recipe.with_default_rate()
            with contextlib.closing(Progress(title=f"{spec.method} on {spec.dataset}")) as bar:
                (row,) = run_group(
                    (spec,), context, paths, common_recipe, bar, compares_rates=compares_rates, calibrates=calibrates
                )
            row["seconds"] = round(time.monotonic() - began, 2)
        # Written again for a finished run: a kill may have come between these files.
        if hosts.is_first():
            write_group((spec,), [row], paths)
            write_results(workdir, [row])
            write_json(workdir / RESULT, row)
            if "zero_shot_accuracy" in row:
                words = accuracy_words(row["zero_shot_accuracy"], row["images"])
                common.tell(f"{ZERO_SHOT} on {row['dataset']}: {words}")
            common.tell(f"{row['method']} on {row['dataset']}: {accuracy_words(row['accuracy'], row['images'])}")
            common.tell(*cautions_of_row(row, spec.make_method(), classes))
            common.tell(f"{row['parameters']:,} parameters; adapter in {paths.adapter(spec)}")
            if "prediction_sets" in row:
                common.tell(row["prediction_sets"])


def open_run(
    settings: TrainSettings, devices: Sequence[jax.Device] | None = None
) -> tuple[SweepContext, RunSpec, Rates | None]:
    """Opens model, dataset and devices; returns them with the spec, and learning rates selected before."""
    axes = SweepAxes(
        methods=(settings.method,),
        datasets=(settings.dataset,),
        shots=(settings.shots,),
        seeds=(settings.seed,),
        options=given_options({settings.method: settings.method_options}),
        start_seed=settings.start_seed,
        given=settings.given,
    )
    context, rates = prepare(settings, axes, devices=devices)
    (spec,) = make_specs(context, settings.recipe.with_default_rate(), axes, rates)
    return context, spec, rates


def plan(settings: TrainSettings, devices: Sequence[jax.Device] | None) -> tuple[SweepContext, list[Group]]:
    """Makes the group on some devices, for `dry_run`."""
    context, spec, _ = open_run(settings, devices)
    return context, [(spec,)]


def finished_row(
    paths: SweepPaths, spec: RunSpec, context: SweepContext, *, compares_rates: bool | None, calibrates: bool
) -> Row:
    """Reads the row of a finished run; empty where it is unfinished. See `run_group` for the arguments.

    Raises `ClipbiasError` where the folder holds a run of other settings without warnings.
    """
    path = paths.workdir / RESULT
    row: Row = read_json(path, dict) if path.exists() else {}
    facts = spec.facts()
    del facts["on_image_error"]  # no number depends on it
    # The row has selected settings where the spec still has the open ones. These are no difference.
    if compares_rates is not None and row:
        selected = row.get("choice", {"options": {}})["options"]
        validation = validation_of(spec, context, compares_rates=compares_rates)
        facts |= {"validation": validation, "options": facts["options"] | selected}
    if compares_rates and "choice" in row and row["recipe"]:
        rate = {"learning_rate": row["learning_rate"]}
        facts |= rate | {"recipe": facts["recipe"] | rate}
    other_settings = [name for name, value in facts.items() if name in row and row[name] != value]
    # A run that came out badly, such as one at a rate that is too high, may be replaced by the next try.
    classes = len(context.datasets[spec.dataset].class_names)
    if other_settings and not cautions_of_row(row, spec.make_method(), classes):
        raise ClipbiasError(
            f"{paths.workdir} holds the adapter of a run with other settings ({', '.join(other_settings)}); choose "
            "another --workdir."
        )
    is_whole = row and paths.adapter(spec).exists() and not (calibrates and "prediction_sets" not in row)
    return row if is_whole and not other_settings else {}


if __name__ == "__main__":
    common.run(main)
