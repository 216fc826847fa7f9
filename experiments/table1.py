"""Methods x datasets x shots x seeds, and the table they make.

    python -m experiments.table1 --config=configs/demo.py
    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1
    python -m experiments.table1 --compare --workdir=/results/table1
    python -m experiments.table1 --config=configs/table1.py --config.part=2/4 --workdir=/results/table1

Continues where it stopped. Writes `results.jsonl` (a line per cell), `table.md`, `table.tex`, `table.html`, the picture
`accuracy` and the tuned adapters; `costs.md` groups the methods by kind and tells what they cost, which the pictures
`accuracy_by_parameters` and `accuracy_by_time` draw; `classes.csv` has every class's accuracy. `--compare` shows what
is finished beside published results and runs nothing. `--config.part` runs one of several parts, which independent jobs
may run side by side in one folder. With `--config.learning_rates` each method's rate is chosen on validation images
first, and `rates.json` tells which (`--config.choose`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from clipbias import hosts, report
from clipbias.data import catalog
from clipbias.errors import ClipbiasError
from clipbias.io import write_text
from clipbias.report.classes import write_class_table
from clipbias.report.published import are_the_eleven
from clipbias.report.style import save_figure, svg_text
from clipbias.report.table import markdown_table, text_table
from clipbias.training.dealing import Part
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, cells_of, make_packs
from clipbias.training.results import Results
from clipbias.training.workdir import note_model, open_part, open_workdir
from experiments import common, grids
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
    packs = make_packs(
        *(config.methods, config.datasets, config.shots, config.seeds),
        options=options,
        runs_per_program=config.runs_per_program,
        learning_rates=config.learning_rates,
        along=config.mesh.run,
    )
    if config.dry_run:
        grids.dry_run(config, options, packs)
        return
    part = Part.named(config.part)
    settings = common.plain(config)
    opened = open_workdir(workdir, settings) if part is None else open_part(workdir, settings, part.folder(workdir))
    with opened as own_folder:
        grid = grids.open_grid(config, options, packs, workdir, part=part)
        note_model(own_folder, grid.trainer.clip)
        rows = grid.run(packs)
        if jax.process_index() == 0:
            write_whole(grid, packs, workdir)
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {len(rows)} cells failed; the first one: {failed[0]['error']}")


def write_whole(grid: Grid, packs: Sequence[Pack], workdir: Path) -> None:
    """Writes the tables of all that is there, the other parts' cells included.

    Parts that end at the same moment may each have read too early: what was written is looked at again until nothing
    has come since.
    """
    written = None
    grid.results.read_others()
    while (rows := grid.rows(packs)) and rows != written:
        write_tables(rows, workdir)
        written = rows
        grid.results.read_others()
    cells = cells_of(grid.tests(packs))
    if len(rows) < cells:
        common.tell(f"{len(rows)} of {cells} cells are there; the last part to end writes the whole table.")


def compare(workdir: Path) -> None:
    """Prints a results file beside published numbers, which the tables mark as such and whose recipes they state."""
    rows = Results.of(workdir).rows
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
    summary = report.summarize(rows, predictions=workdir / "predictions")
    write_text(workdir / "table.md", report.to_markdown(summary))
    write_text(workdir / "table.tex", report.to_latex(summary))
    hosts.check()
    figure = report.accuracy_figure(summary)
    write_text(workdir / "table.html", report.to_html(summary, figure_svg=svg_text(figure)))
    save_figure(figure, workdir / "accuracy")
    common.tell(*report.to_text(summary).split("\n"))
    write_costs(summary, workdir)
    write_class_table(workdir)
    common.tell(f"Tables and picture: {workdir / 'table.html'}")


def write_costs(summary: report.Summary, workdir: Path) -> None:
    """Writes and prints what methods cost, apart from the tables that are the same whenever a grid is run again."""
    tables = report.cost_tables(summary)
    if not tables:
        return
    write_text(workdir / "costs.md", "\n\n".join(map(markdown_table, tables)) + "\n")
    for figure in report.cost_figures(summary):
        figure.save(workdir)
    for table in tables:
        common.tell(*text_table(table).split("\n"))


if __name__ == "__main__":
    common.run(main, _CONFIG)
