"""Methods x datasets x shots x seeds, and the table they make.

    python -m experiments.table1 --config=configs/demo.py
    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1

Continues where it stopped. Writes `results.jsonl` (a line per cell), `table.md`, `table.tex`, `table.html`,
`accuracy.png` and the tuned adapters.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import clipbias
from clipbias import report
from clipbias.errors import ClipbiasError
from clipbias.files import write_text
from clipbias.report.style import save_figure, svg_text
from clipbias.training import mesh as meshes
from clipbias.training.grid import Grid, GridSettings, plan
from clipbias.training.settings import Recipe
from clipbias.training.workdir import open_workdir
from clipbias.tuning import make_method
from experiments import app

_CONFIG = app.define_config("configs/demo.py")


def main(config: ConfigDict, workdir: Path) -> None:
    options = {name: dict(values) for name, values in config.method_options.items()}
    for method in config.methods:  # a wrong name is told before hours of work, not after
        make_method(method, **options.get(method, {}))
    recipe = Recipe.from_config(config)
    with open_workdir(workdir, app.plain(config)):
        clip = clipbias.load(config.model)
        grid = Grid(
            clip,
            recipe,
            GridSettings(
                method_options=options,
                dtype=config.dtype,
                eval_batch_size=config.eval_batch_size,
                checkpoint_seconds=config.checkpoint_seconds,
                on_image_error=config.on_image_error,
                protocol=config.protocol,
                targets=tuple(config.targets) or None,
            ),
            lambda name: app.load_dataset(config, name),
            workdir,
            mesh=meshes.make_mesh(**config.mesh),
        )
        packs = plan(
            config.methods, config.datasets, config.shots, config.seeds, runs_per_program=config.runs_per_program
        )
        rows = grid.run(packs)
        if jax.process_index() == 0:
            write_tables(rows, workdir)
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        raise ClipbiasError(f"{len(failed)} of {len(rows)} cells failed; the first one: {failed[0]['error']}")


def write_tables(rows: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Writes the tables and the picture, and prints the tables."""
    summary = report.summarize(rows)
    write_text(workdir / "table.md", report.to_markdown(summary))
    write_text(workdir / "table.tex", report.to_latex(summary))
    figure = report.accuracy_figure(summary)
    write_text(workdir / "table.html", report.to_html(summary, figure_svg=svg_text(figure)))
    save_figure(figure, workdir / "accuracy")
    print(report.to_text(summary))
    print(f"Tables and picture: {workdir / 'table.html'}")


if __name__ == "__main__":
    app.run(main, _CONFIG)
