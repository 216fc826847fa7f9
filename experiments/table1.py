"""Methods x datasets x shots x seeds, and the table they make.

    python -m experiments.table1 --config=configs/demo.py
    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1
    python -m experiments.table1 --config.compare --workdir=/results/table1
    python -m experiments.table1 --config=configs/table1.py --config.part=2/4 --workdir=/results/table1

Continues where it stopped. Writes `results.jsonl` (a line per run), `table.md`, `table.tex`, `table.html`, the picture
`accuracy` and the tuned adapters; `costs.md` groups the methods by kind and gives their cost, which the pictures
`accuracy_by_parameters` and `accuracy_by_time` draw; `classes.csv` has every class's accuracy. `--config.compare` shows
what is finished beside published results and runs nothing. `--config.part` runs one of several parts, which independent
jobs may run side by side in one folder. With `--config.learning_rates` each method's rate is chosen on validation
images first; `rates.json` has the choice (`--config.choose`).
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import clipbias
import configs
from clipbias import hosts
from clipbias.checks import shown
from clipbias.clip import precision
from clipbias.data import protocols
from clipbias.data.missing import open_datasets
from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines, user_path
from clipbias.training import mesh as meshes
from clipbias.training.ahead import describe, open_topology
from clipbias.training.compute import Compute
from clipbias.training.group import Row
from clipbias.training.rates import CELL, FILE, METHOD, NONE, Rates, choose
from clipbias.training.spec import TEST, VALIDATION, Group, RunSpec, make_groups, make_specs, part_of
from clipbias.training.sweep import RESULTS, parse_part, sweep
from clipbias.training.sweep_context import SweepContext
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import resolve_method
from clipbias.version import __version__
from experiments import common

_CONFIG = "configs/demo.py"


def main(config: ConfigDict, workdir: Path) -> None:
    from clipbias.report.sweep_tables import check_published, write_tables

    if config.compare:
        rows = read_json_lines(workdir / RESULTS)
        check_published(rows, workdir)
        common.tell(*write_tables(rows, workdir))
        return
    if config.dry_run:
        dry_run(config)
        return
    with open_workdir(workdir, common.plain(config), part=parse_part(config.part)):
        prepared = prepare(config)
        note_model(workdir, prepared.shared.clip)
        specs, rows = run(config, prepared, workdir)
        hosts.leave()
        if hosts.is_first() and rows:
            common.tell(*write_tables(rows, workdir))
        if len(rows) < len(specs):
            common.tell(f"{len(rows)} of {len(specs)} runs are there; the last part to end writes the whole table.")
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {len(rows)} runs failed; the first one: {failed[0]['error']}")


@dataclasses.dataclass(frozen=True)
class SweepInputs:
    """A configuration that is ready to run.

    Attributes:
      shared: the model, the datasets and the devices.
      recipe: of the methods that have none of their own.
      axes: what `make_specs` combines.
      rates: learning rates that were chosen before, or `None`.
    """

    shared: SweepContext
    recipe: Recipe
    axes: Mapping[str, Any]
    rates: Rates | None

    def specs(self, learning_rates: tuple[float, ...], rates: Rates | None, score_on: str = TEST) -> list[RunSpec]:
        """The runs, at each of some learning rates or at those that were chosen."""
        shared = self.shared
        return make_specs(
            *(shared.clip, shared.datasets, self.recipe),
            **self.axes,
            learning_rates=learning_rates,
            rates=rates,
            dtype=shared.dtype,
            on_image_error=shared.on_image_error,
            score_on=score_on,
        )


def prepare(config: ConfigDict, devices: Any = None) -> SweepInputs:
    """Loads the model and opens the datasets, of `table1`'s configuration or of `train`'s, which has one of each.

    Args:
      config: the settings.
      devices: absent ones, to compile for; `None` takes those that are there.

    Raises:
      ClipbiasError: a dataset cannot be used, unless `on_missing` is "skip".
    """
    several = "methods" in config
    axes: dict[str, Any] = {
        axis: tuple(config[axis]) if several else (config[one],)
        for axis, one in {"methods": "method", "datasets": "dataset", "shots": "shots", "seeds": "seed"}.items()
    }
    options = config.method_options if several else {config.method: config.method_options}
    axes["options"] = {name: _given_options(name, values) for name, values in options.items()}
    axes |= {"protocol": config.get("protocol", "few_shot"), "targets": tuple(config.get("targets", ()))}
    clip = clipbias.load(config.model)
    hosts.assert_same(f"the model {config.model}", clip.fingerprint)
    targets = [
        one for name in axes["datasets"] for one in protocols.targets_of(axes["protocol"], name, axes["targets"])
    ]
    draws = any(resolve_method(name, axes["options"].get(name, {})).uses_images for name in axes["methods"])
    opened = open_datasets(
        lambda name: common.load_dataset(config, name),
        dict.fromkeys(targets, 0) | dict.fromkeys(axes["datasets"], int(draws)),
        skip=config.get("on_missing") == "skip",
    )
    shared = SweepContext(
        *(clip, opened, Compute.from_config(config), meshes.make_mesh(**config.mesh, devices=devices)),
        dtype=config.dtype,
        on_image_error=config.on_image_error,
    )
    rates = Rates.read(rates_path(config.rates_file)) if config.rates_file else None
    return SweepInputs(shared, Recipe.from_config(config), axes, rates)


def _given_options(method: str, values: Any) -> dict[str, Any]:
    """The options that are given; `train` shows every option, `None` where it is not."""
    if not isinstance(values, ConfigDict | dict):
        raise ClipbiasError(f"method_options.{method} is {shown(values)}; it must hold options by name.")
    return {option: value for option, value in values.items() if value is not None}


def run(config: ConfigDict, prepared: SweepInputs, workdir: Path) -> tuple[list[RunSpec], list[Row]]:
    """Runs a configuration: first on validation images, if learning rates are to be chosen; then on test images.

    Returns:
      The specs on test images, and their rows as far as these are there.
    """
    part, rates = parse_part(config.get("part", "")), prepared.rates
    learning_rates, chosen = tuple(config.get("learning_rates", ())), False
    scope, validate_only = config.get("choose", NONE), config.get("score_on", TEST) == VALIDATION
    options: dict[str, Any] = dict(part=part, most_runs=config.get("runs_per_program", 0))
    if validate_only and not (learning_rates and scope != NONE):
        raise ClipbiasError(
            "score_on is validation, but no learning rate is to be chosen; give --config.learning_rates."
        )
    if learning_rates and scope != NONE:
        if scope == METHOD and part[1] > 1 and not validate_only:
            raise ClipbiasError(
                "a part has not all datasets and shots that a method's learning rate is chosen by; choose first, with "
                "--config.score_on=validation in all parts, and give the result as --config.rates_file; or choose for "
                f"each dataset and number of shots, --config.choose={CELL}."
            )
        # Methods with a rate of their own, or without any, have nothing to choose.
        tried = [x for x in prepared.specs(learning_rates, rates, VALIDATION) if x.learning_rate in learning_rates]
        rows = sweep(tried, prepared.shared, workdir, prepared.recipe, **options) if tried else []
        if validate_only and len(rows) < len(tried):
            common.tell(f"{len(rows)} of {len(tried)} runs are there; the last part to end writes {FILE}.")
            return [], []
        mine = {spec.key for spec in (tried if validate_only else part_of(tried, part))}
        rates, learning_rates, chosen = choose([row for row in rows if row["key"] in mine], scope), (), True
        if hosts.is_first() and (validate_only or part[1] == 1):
            rates.write(workdir / FILE, _provenance(prepared, tried, scope))
        if validate_only:
            common.tell(f"Learning rates: {workdir / FILE}")
            return [], []
    specs = prepared.specs(learning_rates, rates)
    notes = _choices(specs, rates) if chosen and rates is not None else {}
    return specs, sweep(specs, prepared.shared, workdir, prepared.recipe, notes=notes, **options)


def _choices(specs: list[RunSpec], rates: Rates) -> dict[str, Row]:
    """The facts of each spec's choice of a learning rate, by its key, for its row."""
    entries = {spec.key: rates.entry(spec.method, spec.dataset, spec.shots) for spec in specs}
    return {
        key: {"choice": {name: entry[name] for name in ("for", "cells", "tried")}}
        for key, entry in entries.items()
        if entry
    }


def _provenance(prepared: SweepInputs, tried: list[RunSpec], scope: str) -> dict[str, Any]:
    """What a choice of learning rates was made with."""
    recipe = prepared.recipe.facts()
    return {
        "for": scope,
        "images": sorted({spec.validation for spec in tried} - {"none"}),
        "model": prepared.shared.clip.name,
        "fingerprint": prepared.shared.clip.fingerprint,
        "protocol": prepared.axes["protocol"],
        "datasets": list(dict.fromkeys(spec.dataset for spec in tried)),
        "shots": sorted({spec.shots for spec in tried}),
        "seeds": sorted({spec.seed for spec in tried}),
        "recipe": {name: value for name, value in recipe.items() if name != "learning_rate"},
        "dtype": prepared.shared.dtype,
        "clipbias": __version__,
    }


def rates_path(name: str) -> Path:
    """A file of learning rates: where its name says, or among the configurations that come with the program."""
    path = user_path(name)
    own = Path(configs.__file__).parent / name
    return own if own.is_file() and not path.exists() else path


def dry_run(*configs: ConfigDict) -> None:
    """Prints shapes, parameters, and each program's memory as its compiler says it. Trains nothing, leaves no file.

    With `topology`, the same in all configurations, programs are compiled for absent devices. Then no device may have
    been touched before.
    """
    topology = open_topology(configs[0].topology) if configs[0].topology else None
    with topology or contextlib.nullcontext():
        if topology is not None:
            common.tell(f"compiled for {topology}, by {topology.compiler}")
        for config in configs:
            if topology is not None:
                config.dtype = precision.resolve(config.dtype)
            prepared = prepare(config, None if topology is None else topology.devices)
            every = prepared.specs(tuple(config.get("learning_rates", ())), prepared.rates)
            specs = part_of(every, parse_part(config.get("part", "")))
            for group in make_groups(specs, config.get("runs_per_program", 0)):
                common.tell(*_described(group, prepared))
            common.tell(f"{len(specs)} runs")


def _described(group: Group, prepared: SweepInputs) -> list[str]:
    """A group's lines of a dry run."""
    shared, compute, first = prepared.shared, prepared.shared.compute, group[0]
    method, draw = first.make_method(), shared.draws_of(group)[first.seed]
    tested = [evaluation.dataset.split("test") for evaluation in draw.evaluations]
    lines = describe(
        shared.bind(method, draw.source),
        first.recipe or prepared.recipe,
        train_images=len(draw.source.split("train")) if method.uses_images else 0,
        runs=len(group),
        eval_batch_size=min(compute.eval_batch_size, *map(len, tested)),
        mesh=shared.mesh,
        remat=compute.remat,
        chunks=compute.class_chunks,
        micro_batch=compute.micro_batch,
    )
    shots = f"{first.shots} shots, " if first.shots else ""
    return [
        f"{first.method} on {first.dataset}, {shots}{sum(map(len, tested))} test images:",
        *(f"  {x}" for x in lines),
    ]


if __name__ == "__main__":
    common.run(main, _CONFIG)
