"""Tunes one method on one dataset and evaluates it: a grid of one cell.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \\
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `results.jsonl`, the same as `result.json`, and
`adapter.safetensors`.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from clipbias.io import read_json_lines, write_text
from clipbias.training.metrics import METRICS
from clipbias.training.packs import make_packs
from clipbias.training.workdir import ADAPTER, note_model, open_workdir
from experiments import common, grids

_CONFIG = "configs/train.py"
# A loss below this share of what it was has fallen.
LEARNED = 0.95


def main(config: ConfigDict, workdir: Path) -> None:
    options = {config.method: {name: value for name, value in config.method_options.items() if value is not None}}
    packs = make_packs([config.method], [config.dataset], [config.shots], [config.seed], options=options)
    if config.dry_run:
        grids.dry_run(config, options, packs)
        return
    with open_workdir(workdir, common.plain(config)):
        grid = grids.open_grid(config, options, packs, workdir, single=True)
        note_model(workdir, grid.trainer.clip)
        (row,) = grid.run(packs)
        if jax.process_index() == 0:
            write_text(workdir / "result.json", json.dumps(row, indent=2) + "\n")
            common.tell(f"{row['method']} on {row['dataset']}: {row['accuracy']:.2f} % of test images")
            if hint := hardly_learned(read_json_lines(workdir / METRICS), row):
                common.tell(hint)
            common.tell(f"{row['parameters']:,} parameters; adapter in {workdir / ADAPTER}")


def hardly_learned(lines: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    """What to do where the mean loss of the last third of the steps is hardly below that of the first; else nothing.

    Args:
      lines: of the steps, `METRICS`.
      row: of the run; of one that is trained as its authors do nothing is said.
    """
    losses = [line["loss"] for line in lines if "loss" in line]
    third = max(1, len(losses) // 3)
    first, last = (statistics.fmean(part) if part else 0.0 for part in (losses[:third], losses[-third:]))
    if len(losses) < 2 or "recipe" in row or last < LEARNED * first:
        return ""
    return (
        f"the loss hardly fell in {len(losses)} steps, from {first:.3g} to {last:.3g}: try more --config.epochs or "
        f"another --config.learning_rate than {row['learning_rate']:g}, or have one chosen by table1 with "
        "--config.learning_rates."
    )


if __name__ == "__main__":
    common.run(main, _CONFIG)
