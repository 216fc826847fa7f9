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
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import clipbias
import configs
from clipbias import hosts
from clipbias.checks import shown
from clipbias.clip import precision
from clipbias.data import protocols
from clipbias.data.missing import open_datasets
from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines, user_path
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.training import mesh as meshes
from clipbias.training.ahead import open_topology
from clipbias.training.axes import SweepAxes, make_specs
from clipbias.training.calibrate import calibrate_adapter
from clipbias.training.compiled import describe
from clipbias.training.group import make_job
from clipbias.training.rates import CELL, FILE, METHOD, NONE, Rates, choose
from clipbias.training.spec import TEST, UNSELECTED, VALIDATION, Group, Row, RunSpec, make_groups, part_of, run_names
from clipbias.training.sweep import RESULTS, parse_part, sweep
from clipbias.training.sweep_context import SweepContext
from clipbias.training.sweep_paths import SweepPaths
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning.registry import resolve_method
from clipbias.version import __version__
from configs.table1 import Table1Settings
from experiments import common

_CONFIG = "configs/demo.py"


def main(settings: Table1Settings, workdir: Path) -> None:
    from clipbias.report.sweep_tables import check_published, write_tables

    if settings.compare:
        rows = read_json_lines(workdir / RESULTS)
        check_published(rows, workdir)
        common.tell(*write_tables(rows, workdir, settings.measures))
        return
    if settings.dry_run:
        dry_run(settings)
        return
    with open_workdir(workdir, as_json(settings), part=parse_part(settings.part)):
        inputs = prepare(settings)
        note_model(workdir, inputs.context.clip)
        specs, rows = run(inputs, workdir)
        if settings.calibrate:
            calibrate(inputs, specs, rows, workdir)
        hosts.leave()
        if hosts.is_first() and rows:
            common.tell(*write_tables(rows, workdir, settings.measures))
        if len(rows) < len(specs):
            common.tell(
                f"{len(rows)} of {counted(len(specs), 'run')} done; the last part to end writes the whole table."
            )
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {counted(len(rows), 'run')} failed; the first one: {failed[0]['error']}")


@dataclasses.dataclass(frozen=True)
class SweepInputs:
    """Settings that are ready to run.

    Attributes:
      settings: of `table1`.
      context: the model, the datasets and the devices.
      rates: learning rates that were selected before, or `None`.
    """

    settings: Table1Settings
    context: SweepContext
    rates: Rates | None

    def specs(
        self, learning_rates: Sequence[float] = (), rates: Rates | None = None, score_on: str = TEST
    ) -> list[RunSpec]:
        """The runs, at each of some learning rates or at those that were selected."""
        settings = self.settings
        axes = SweepAxes(
            methods=settings.methods,
            datasets=settings.datasets,
            shots=(None,) if settings.shots is None else settings.shots,
            seeds=settings.seeds,
            start_seed=settings.start_seed,
            learning_rates=tuple(learning_rates),
            options=given_options(settings),
            protocol=settings.protocol,
            targets=settings.targets or (),
            concentration=settings.concentration,
            hold_out_shot=settings.hold_out_shot,
            score_on=score_on,
        )
        return make_specs(self.context, settings.recipe, axes, rates)


def prepare(settings: Table1Settings, devices: Sequence[jax.Device] | None = None) -> SweepInputs:
    """Loads the model and opens the datasets.

    Args:
      settings: of `table1`, or of `train` as one run of it.
      devices: absent ones, to compile for; `None` takes those that are there.

    Raises:
      ClipbiasError: a dataset cannot be used, unless `on_missing` is "skip".
    """
    options = given_options(settings)
    clip = clipbias.load(settings.model)
    hosts.assert_same(f"the model {settings.model}", clip.fingerprint)
    draws = any(resolve_method(name, options.get(name, {})).uses_images for name in settings.methods)
    training = dict.fromkeys(settings.datasets, draws)
    targets = [
        target
        for name in settings.datasets
        for target in protocols.targets_of(settings.protocol, name, settings.targets or ())
    ]
    opened = open_datasets(
        lambda name: common.load_dataset(settings, name),
        dict.fromkeys(targets, False) | training,
        skip=settings.on_missing == "skip",
    )
    context = SweepContext(
        clip,
        opened,
        settings.compute,
        meshes.make_mesh(run=settings.mesh.run, data=settings.mesh.data, devices=devices),
        dtype=settings.dtype,
        on_image_error=settings.on_image_error,
    )
    rates = None if settings.rates_file is None else Rates.read(rates_path(settings.rates_file))
    return SweepInputs(settings, context, rates)


def given_options(settings: Table1Settings) -> dict[str, dict[str, object]]:
    """The methods' options that are given; `train` shows every option, `None` where it is not."""
    options: dict[str, dict[str, object]] = {}
    for method, values in settings.method_options.items():
        if not isinstance(values, Mapping):
            raise ClipbiasError(f"method_options.{method} is {shown(values)}; it must hold options by name.")
        options[method] = {option: value for option, value in values.items() if value is not None}
    return options


def run(inputs: SweepInputs, workdir: Path) -> tuple[list[RunSpec], list[Row]]:
    """Runs a sweep: first on validation images, if learning rates are to be selected; then on test images.

    Returns:
      The specs on test images, and their rows as far as these are there.
    """
    settings = inputs.settings
    if not settings.learning_rates or settings.choose == NONE:
        if settings.score_on == VALIDATION:
            raise ClipbiasError(
                "score_on is validation, but no learning rate is to be chosen; give --config.learning_rates."
            )
        specs = inputs.specs(settings.learning_rates, inputs.rates)
        return specs, _sweep(inputs, specs, workdir)
    selected = select_rates(inputs, workdir)
    if selected is None:
        return [], []
    specs = inputs.specs((), selected)
    return specs, _sweep(inputs, specs, workdir, _choices(specs, selected))


def calibrate(inputs: SweepInputs, specs: Sequence[RunSpec], rows: Sequence[Row], workdir: Path) -> None:
    """Calibrates the adapters of this part's finished runs."""
    paths = SweepPaths(workdir, run_names(specs))
    done = {row["key"] for row in rows if row["status"] == "ok"}
    for spec in part_of(specs, parse_part(inputs.settings.part)):
        if spec.key in done and hosts.from_first(paths.adapter(spec).exists):
            inputs.context.begin(spec.dataset)
            sentence = calibrate_adapter(paths.adapter(spec), spec, inputs.context)
            if sentence and hosts.is_first():
                common.tell(sentence)


def select_rates(inputs: SweepInputs, workdir: Path) -> Rates | None:
    """Selects learning rates on validation images; `None` where only these were asked for, or other parts go on."""
    settings = inputs.settings
    part = parse_part(settings.part)
    validate_only = settings.score_on == VALIDATION
    if settings.choose == METHOD and part[1] > 1 and not validate_only:
        raise ClipbiasError(
            "a part has not all datasets and shots that a method's learning rate is chosen by; choose first, with "
            "--config.score_on=validation in all parts, and give the result as --config.rates_file; or choose for "
            f"each dataset and number of shots, --config.choose={CELL}."
        )
    # Methods with a rate of their own, or without any, have nothing to select.
    specs = inputs.specs(settings.learning_rates, inputs.rates, VALIDATION)
    candidates = [spec for spec in specs if spec.learning_rate in settings.learning_rates]
    rows = _sweep(inputs, candidates, workdir) if candidates else []
    if validate_only and len(rows) < len(candidates):
        common.tell(f"{len(rows)} of {counted(len(candidates), 'run')} done; the last part to end writes {FILE}.")
        return None
    scope = {spec.key for spec in (candidates if validate_only else part_of(candidates, part))}
    rates = choose([row for row in rows if row["key"] in scope], settings.choose)
    if hosts.is_first() and (validate_only or part[1] == 1):
        rates.write(workdir / FILE, _provenance(inputs, candidates))
    if validate_only:
        common.tell(f"Learning rates: {workdir / FILE}")
        return None
    return rates


def _sweep(
    inputs: SweepInputs, specs: list[RunSpec], workdir: Path, notes: Mapping[str, Row] | None = None
) -> list[Row]:
    settings = inputs.settings
    return sweep(
        specs,
        inputs.context,
        workdir,
        settings.recipe,
        part=parse_part(settings.part),
        most_runs=settings.runs_per_program,
        notes=notes,
    )


def _choices(specs: list[RunSpec], rates: Rates) -> dict[str, Row]:
    """The facts of each spec's choice of a learning rate, by its key, for its row."""
    entries = {spec.key: rates.entry(spec.method, spec.dataset, spec.shots) for spec in specs}
    return {
        key: {"choice": {name: entry[name] for name in ("for", "cells", "tried")}}
        for key, entry in entries.items()
        if entry
    }


def _provenance(inputs: SweepInputs, candidates: list[RunSpec]) -> dict[str, object]:
    """What learning rates were selected with."""
    settings = inputs.settings
    clip = inputs.context.clip
    recipe = settings.recipe.facts()
    return {
        "for": settings.choose,
        "images": sorted({spec.validation for spec in candidates} - {UNSELECTED}),
        "model": clip.name,
        "fingerprint": clip.fingerprint,
        "protocol": settings.protocol,
        "datasets": list(dict.fromkeys(spec.dataset for spec in candidates)),
        "shots": sorted({spec.shots for spec in candidates}, key=lambda shots: shots or 0),
        "seeds": sorted({spec.seed for spec in candidates}),
        "recipe": {name: value for name, value in recipe.items() if name != "learning_rate"},
        "dtype": settings.dtype,
        "clipbias": __version__,
    }


def rates_path(name: str) -> Path:
    """A file of learning rates: where its name says, or among the configurations that come with the program."""
    path = user_path(name)
    packaged = Path(configs.__file__).parent / name
    return packaged if packaged.is_file() and not path.exists() else path


def dry_run(*sweeps: Table1Settings) -> None:
    """Prints shapes, parameters, and each program's memory as its compiler says it. Trains nothing, leaves no file.

    With `topology`, the same in all sweeps, programs are compiled for absent devices. Then no device may have been
    touched before.
    """
    name = sweeps[0].topology
    topology = None if name is None else open_topology(name)
    with topology or contextlib.nullcontext():
        if topology is not None:
            common.tell(f"compiled for {topology}, by {topology.compiler}")
        for settings in sweeps:
            _describe_sweep(settings, None if topology is None else topology.devices)


def _describe_sweep(settings: Table1Settings, devices: Sequence[jax.Device] | None) -> None:
    """A sweep's lines of a dry run."""
    inputs = prepare(dataclasses.replace(settings, dtype=precision.resolve(settings.dtype)), devices)
    specs = part_of(inputs.specs(settings.learning_rates, inputs.rates), parse_part(settings.part))
    for group in make_groups(specs, settings.runs_per_program):
        common.tell(*_described(group, inputs))
    common.tell(counted(len(specs), "run"))


def _described(group: Group, inputs: SweepInputs) -> list[str]:
    """A group's lines of a dry run."""
    first = group[0]
    job = make_job(group, inputs.context)
    tested = sum(len(evaluation.dataset.split("test")) for evaluation in job.protocol.evaluations)
    title = f"{first.method} on {first.dataset}, {first.shots_words}, {tested} test images:"
    lines = [f"  {line}" for line in describe(job)]
    return [title, *lines]


if __name__ == "__main__":
    common.run(main, _CONFIG)
