"""Methods x datasets x shots x seeds, and the table they make.

    python -m experiments.table1 --config=configs/demo.py
    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1
    python -m experiments.table1 --compare --workdir=/results/table1

Continues where it stopped. Writes `results.jsonl` (a line per cell), `table.md`, `table.tex`, `table.html`, the picture
`accuracy` and the tuned adapters. `--compare` shows what is finished beside published results and runs nothing.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import clipbias
from clipbias import report
from clipbias.data import catalog
from clipbias.errors import ClipbiasError
from clipbias.files import write_text
from clipbias.report.published import are_the_eleven
from clipbias.report.style import save_figure, svg_text
from clipbias.training import mesh as meshes
from clipbias.training.forecast import device_rate
from clipbias.training.grid import Grid
from clipbias.training.programs import Pack, plan
from clipbias.training.results import Results
from clipbias.training.settings import GridSettings, Recipe
from clipbias.training.workdir import open_workdir
from clipbias.tuning import make_method
from experiments import app
from experiments.configuration import options_by_method

_CONFIG = "configs/demo.py"
_COMPARE = flags.DEFINE_bool(
    "compare", False, "Show the finished cells of --workdir beside published results; run nothing."
)


def main(config: ConfigDict, workdir: Path) -> None:
    if _COMPARE.value:
        compare(workdir)
        return
    options = options_by_method(config)
    for method in config.methods:  # a wrong name is told before hours of work, not after
        make_method(method, **options.get(method, {}))
    packs = plan(
        *(config.methods, config.datasets, config.shots, config.seeds),
        runs_per_program=config.runs_per_program,
        learning_rates=config.learning_rates,
    )
    if config.dry_run:
        with tempfile.TemporaryDirectory() as nowhere:
            dry_run(open_grid(config, options, Path(nowhere)), packs)
        return
    with open_workdir(workdir, app.plain(config)):
        rows = open_grid(config, options, workdir).run(packs)
        if jax.process_index() == 0:
            write_tables(rows, workdir)
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {len(rows)} cells failed; the first one: {failed[0]['error']}")


def open_grid(config: ConfigDict, options: Mapping[str, Any], workdir: Path) -> Grid:
    """The grid that a configuration describes."""
    inputs = {name: config[name] for name in ("template", "split", "split_dir", "index_file") if config[name]}
    if config.on_image_error != "raise":
        inputs["on_image_error"] = config.on_image_error
    if {"folder", "csv"} & {*config.datasets, *config.targets}:  # the place is all that tells these from others
        inputs["data_dir"] = str(Path(config.data_dir).expanduser().resolve())
    settings = GridSettings(
        method_options=options,
        dtype=config.dtype,
        eval_batch_size=config.eval_batch_size,
        checkpoint_seconds=config.checkpoint_seconds,
        on_image_error=config.on_image_error,
        protocol=config.protocol,
        targets=tuple(config.targets) or None,
        remat=config.remat,
        class_chunks=config.class_chunks,
        side_by_side=not config.runs_per_program,
        inputs=inputs,
    )
    mesh = meshes.make_mesh(**config.mesh)
    clip, recipe = clipbias.load(config.model), Recipe.from_config(config)
    return Grid(clip, recipe, settings, lambda name: app.load_dataset(config, name), workdir, mesh=mesh)


def dry_run(grid: Grid, packs: Sequence[Pack]) -> None:
    """Prints what each program would do and need, and the whole."""
    rate, forecasts = device_rate(), grid.forecast(packs)
    for forecast in forecasts:
        print(forecast.describe(rate))
    seconds = sum(forecast.seconds(rate) for forecast in forecasts)
    cells = sum(len(forecast.tasks) for forecast in forecasts)
    print(f"{cells} cells in {len(forecasts)} programs: about {seconds:,.0f} s, without compiling and reading")


def compare(workdir: Path) -> None:
    """Prints a results file beside published numbers, which the tables mark as such and whose recipes they state."""
    rows = Results(workdir / "results.jsonl").rows
    datasets = {row["dataset"] for row in rows}
    if not are_the_eleven(datasets):
        missing = sorted(name for name in catalog.ELEVEN if name not in datasets)
        raise ClipbiasError(
            f"{workdir} has no results for {', '.join(missing) or 'the eleven datasets alone'}; published numbers are "
            "for the eleven datasets of configs/table1.py."
        )
    write_tables(rows, workdir)


def write_tables(rows: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Writes the tables and the picture, and prints the tables."""
    summary = report.summarize(rows)
    write_text(workdir / "table.md", report.to_markdown(summary))
    write_text(workdir / "table.tex", report.to_latex(summary))
    figure = report.accuracy_figure(summary)
    write_text(workdir / "table.html", report.to_html(summary, figure_svg=svg_text(figure)))
    save_figure(figure, workdir / "accuracy")
    app.tell(*report.to_text(summary).split("\n"))
    app.tell(f"Tables and picture: {workdir / 'table.html'}")


if __name__ == "__main__":
    app.run(main, _CONFIG)
