"""Methods x datasets x shots x seeds, and the table they make.

    python -m experiments.table1 --config=configs/demo.py
    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1
    python -m experiments.table1 --config.compare --workdir=/results/table1
    python -m experiments.table1 --config=configs/table1.py --config.part=2/4 --workdir=/results/table1

Continues where it stopped. Writes `results.jsonl` (a line per run), `table.md`, `table.tex`, `table.html`, the tuned
adapters, the picture `gains` over zero-shot and, of several numbers of shots or without gains, the picture `accuracy`;
`costs.md` groups the methods by kind and gives their cost, which the pictures `accuracy_by_parameters` and
`accuracy_by_time` draw; `classes.csv` has every class's accuracy. `--config.compare` shows what is finished beside
published results and runs nothing. `--config.part` runs one of several parts, which independent jobs may run side by
side in one folder. With `--config.learning_rates` each method's rate is chosen on validation images first; `rates.json`
has the choice (`--config.choose`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

import clipbias
import configs
from clipbias import hosts
from clipbias.checks import shown
from clipbias.clip import precision
from clipbias.data import protocols
from clipbias.data.sources import open_datasets
from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines, user_path
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.training import placement
from clipbias.training.ahead import describe, open_topology, traced_for
from clipbias.training.context import SweepContext
from clipbias.training.rates import PER_CELL, PER_METHOD, RATES, UNSELECTED_RATES, Rates, select_learning_rates
from clipbias.training.run import make_job
from clipbias.training.spec import TEST, UNSELECTED, VALIDATION, Group, Row, RunSpec, make_groups, part_of, run_names
from clipbias.training.sweep import RESULTS, SweepAxes, make_specs, parse_part, sweep
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning import Task
from clipbias.tuning.prompts import Classes
from clipbias.tuning.registry import resolve_method
from clipbias.version import __version__
from configs._common import SweepSettings
from configs.table1 import Table1Settings
from experiments import common


def main(settings: Table1Settings, workdir: Path) -> None:
    from clipbias.report.sweep_tables import check_published, write_tables

    if settings.compare:
        rows = read_json_lines(workdir / RESULTS)
        check_published(rows, workdir)
        common.tell(*write_tables(rows, workdir, settings.measures))
        return
    if settings.dry_run:
        dry_run(settings.topology, lambda devices: plan(settings, devices))
        return
    with open_workdir(workdir, as_json(settings), part=parse_part(settings.part)):
        context, rates = prepare(settings, axes_of(settings), skip_missing=settings.on_missing == "skip")
        note_model(workdir, context.clip)
        specs, rows = run(settings, context, rates, workdir)
        if settings.hold_out_shot and all(spec.validation == UNSELECTED for spec in specs):
            common.tell("--config.hold_out_shot holds nothing out, since nothing is selected; give learning_rates.")
        # Tables take the first process alone, and the others' connections would time out meanwhile.
        hosts.leave()
        if settings.calibrate:
            names = run_names(specs)
            common.tell(*(f"{names[row['key']]}: {row['prediction_sets']}" for row in rows if "prediction_sets" in row))
        if hosts.is_first() and rows:
            common.tell(*write_tables(rows, workdir, settings.measures))
        if len(rows) < len(specs):
            common.tell(
                f"{len(rows)} of {counted(len(specs), 'run')} done; the last part to end writes the whole table."
            )
    # After the tables: the runs that did not fail are worth them.
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {counted(len(rows), 'run')} failed; the first one: {failed[0]['error']}")


def axes_of(settings: Table1Settings) -> SweepAxes:
    """Makes the axes of the sweep, at the recipe's learning rate."""
    return SweepAxes(
        methods=settings.methods,
        datasets=settings.datasets,
        shots=(None,) if settings.shots is None else settings.shots,
        seeds=settings.seeds,
        start_seed=settings.start_seed,
        options=given_options(settings.method_options),
        protocol=settings.protocol,
        targets=settings.targets or (),
        concentration=settings.concentration,
        hold_out_shot=settings.hold_out_shot,
        given=settings.given,
    )


def prepare(
    settings: SweepSettings,
    axes: SweepAxes,
    *,
    skip_missing: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[SweepContext, Rates | None]:
    """Opens the datasets, loads the model, and reads learning rates that were selected before.

    With `skip_missing` unusable datasets are left out, else they raise `ClipbiasError`. `devices` are absent ones to
    compile for; default: the present ones.
    """
    methods = {name: resolve_method(name, axes.options.get(name, {})) for name in axes.methods}
    # Datasets of targets are tested alone and need no training images; a dataset in both roles needs them.
    draws = any(method.uses_images for method in methods.values())
    training = dict.fromkeys(axes.datasets, draws)
    targets = [target for name in axes.datasets for target in protocols.targets_of(axes.protocol, name, axes.targets)]
    # Before the model, whose weights may have to be downloaded.
    datasets = open_datasets(
        lambda name: common.load_dataset(settings, name), dict.fromkeys(targets, False) | training, skip=skip_missing
    )
    # In host memory: the context puts the weights on the mesh, and a second copy would take a device's memory.
    clip = clipbias.load(settings.model, device="host")
    hosts.assert_same(f"the model {settings.model}", clip.identity)
    for text in ("template", "descriptions"):
        if getattr(settings, text) is None or axes.protocol == "pseudo_labels":  # zero-shot, which reads them, labels
            continue
        classes = Classes.of(next(iter(datasets.values())))
        if fixed := [name for name, method in methods.items() if text in Task(clip, method, classes).unread]:
            common.tell(f"--config.{text} changes zero-shot but not {', '.join(fixed)}, whose prompt is fixed")
    context = SweepContext(
        clip,
        datasets,
        settings.compute,
        placement.make_mesh(run=settings.mesh.run, data=settings.mesh.data, devices=devices),
        dtype=precision.resolve(settings.dtype or "float32"),
        on_image_error=settings.on_image_error or "raise",
    )
    rates = None if settings.rates_file is None else Rates.read(rates_path(settings.rates_file))
    if rates is not None and rates.model not in (None, clip.name):
        common.tell(
            f"the learning rates of {settings.rates_file} were selected for {rates.model}, not for {clip.name}."
        )
    return context, rates


def given_options(method_options: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Returns the given options by method; `train` lists every option, `None` where it is not given."""
    options: dict[str, dict[str, object]] = {}
    for method, values in method_options.items():
        if not isinstance(values, Mapping):
            raise ClipbiasError(f"method_options.{method} is {shown(values)}; it must hold options by name.")
        options[method] = {option: value for option, value in values.items() if value is not None}
    return options


def run(
    settings: Table1Settings, context: SweepContext, rates: Rates | None, workdir: Path
) -> tuple[list[RunSpec], list[Row]]:
    """Runs a sweep: on validation images where learning rates are selected; then on test images.

    Returns the specs on test images, and the rows that are finished.
    """
    axes = axes_of(settings)
    selects = bool(settings.learning_rates) and settings.choose != UNSELECTED_RATES
    if selects:
        rates = sweep_rates(settings, context, rates, workdir)
        if rates is None:
            return [], []
    elif settings.score_on == VALIDATION:
        raise ClipbiasError("score_on is validation, but no learning rate is selected; give --config.learning_rates.")
    else:
        axes = dataclasses.replace(axes, learning_rates=settings.learning_rates)
    specs = make_specs(context, settings.recipe, axes, rates)
    # Where all rates are tested, none is missing.
    if rates is not None and not axes.learning_rates:
        common.tell(*rates.unlisted(specs, settings.recipe))
    return specs, _sweep(settings, context, specs, workdir, _choices(specs, rates) if selects and rates else None)


def sweep_rates(settings: Table1Settings, context: SweepContext, rates: Rates | None, workdir: Path) -> Rates | None:
    """Runs the sweep on validation images and selects learning rates; `None` where that was all, or parts remain."""
    part = parse_part(settings.part)
    validate_only = settings.score_on == VALIDATION
    if settings.choose == PER_METHOD and part[1] > 1 and not validate_only:
        raise ClipbiasError(
            "a part lacks datasets and shots by which a method's learning rate is selected; select first, with "
            "--config.score_on=validation in all parts, and give the result as --config.rates_file; or select for "
            f"each dataset and number of shots, --config.choose={PER_CELL}."
        )
    # Methods with their own rate, or without a rate, have nothing to select.
    axes = dataclasses.replace(axes_of(settings), learning_rates=settings.learning_rates, score_on=VALIDATION)
    specs = make_specs(context, settings.recipe, axes, rates)
    candidates = [spec for spec in specs if spec.learning_rate in settings.learning_rates]
    rows = _sweep(settings, context, candidates, workdir) if candidates else []
    if validate_only and len(rows) < len(candidates):
        common.tell(f"{len(rows)} of {counted(len(candidates), 'run')} done; the last part to end writes {RATES}.")
        return None
    # A part selects the rates of its own cells alone; the file for later sweeps needs the rows of all parts.
    scope = {spec.key for spec in (candidates if validate_only else part_of(candidates, part))}
    selected = select_learning_rates([row for row in rows if row["key"] in scope], settings.choose)
    if hosts.is_first() and (validate_only or part[1] == 1):
        selected.write(workdir / RATES, _provenance(settings, context, candidates))
    if validate_only:
        common.tell(f"Learning rates: {workdir / RATES}")
        return None
    return selected


def _sweep(
    settings: Table1Settings,
    context: SweepContext,
    specs: list[RunSpec],
    workdir: Path,
    facts: Mapping[str, Row] | None = None,
) -> list[Row]:
    return sweep(
        specs,
        context,
        workdir,
        settings.recipe,
        part=parse_part(settings.part),
        most_runs=settings.runs_per_program,
        calibrates=settings.calibrate and specs[0].score_on == TEST,
        facts=facts,
    )


def _choices(specs: list[RunSpec], rates: Rates) -> dict[str, Row]:
    entries = {spec.key: rates.entry(spec.method, spec.dataset, spec.shots) for spec in specs}
    return {
        key: {"choice": {name: entry[name] for name in ("for", "cells", "tried")}}
        for key, entry in entries.items()
        if entry
    }


def _provenance(settings: Table1Settings, context: SweepContext, candidates: list[RunSpec]) -> dict[str, object]:
    clip = context.clip
    recipe = settings.recipe.facts()
    return {
        "for": settings.choose,
        "images": sorted({spec.validation for spec in candidates} - {UNSELECTED}),
        "model": clip.name,
        "identity": clip.identity,
        "protocol": settings.protocol,
        "datasets": list(dict.fromkeys(spec.dataset for spec in candidates)),
        "shots": sorted({spec.shots for spec in candidates}, key=lambda shots: shots or 0),
        "seeds": sorted({spec.seed for spec in candidates}),
        "recipe": {name: value for name, value in recipe.items() if name != "learning_rate"},
        "dtype": settings.dtype,
        "clipbias": __version__,
    }


def rates_path(name: str) -> Path:
    """Finds a file of learning rates by its path, or among the program's own configurations."""
    path = user_path(name)
    packaged = Path(configs.__file__).parent / name
    return packaged if packaged.is_file() and not path.exists() else path


def plan(settings: Table1Settings, devices: Sequence[jax.Device] | None) -> tuple[SweepContext, list[Group]]:
    """Makes the groups of a sweep on some devices, for `dry_run`."""
    context, rates = prepare(settings, axes_of(settings), skip_missing=settings.on_missing == "skip", devices=devices)
    axes = dataclasses.replace(axes_of(settings), learning_rates=settings.learning_rates)
    specs = part_of(make_specs(context, settings.recipe, axes, rates), parse_part(settings.part))
    return context, make_groups(specs, settings.runs_per_program)


def dry_run(
    topology_name: str | None, *plans: Callable[[Sequence[jax.Device] | None], tuple[SweepContext, list[Group]]]
) -> None:
    """Prints shapes, parameters, and each program's memory as its compiler reports it. Trains and writes nothing.

    `topology_name` names absent devices; JAX must not have touched a device before. Each plan makes the groups of a
    sweep for given devices.
    """
    topology = None if topology_name is None else open_topology(topology_name)
    with contextlib.nullcontext() if topology is None else traced_for(topology.chip.target):
        if topology is not None:
            common.tell(f"compiled for {topology}, by {topology.compiler}")
        for make in plans:
            context, groups = make(None if topology is None else topology.devices)
            for group in groups:
                job = make_job(group, context)
                tested = sum(len(evaluation.dataset.split("test")) for evaluation in job.protocol.evaluations)
                first = group[0]
                common.tell(f"{first.method} on {first.dataset}, {first.shots_words}, {tested} test images:")
                common.tell(*(f"  {line}" for line in describe(job)))
            common.tell(counted(sum(map(len, groups)), "run"))


if __name__ == "__main__":
    common.run(main, "configs/demo.py")
