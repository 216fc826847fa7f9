"""Tunes one method on one dataset and evaluates it: a grid of one cell.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \\
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `results.jsonl`, the same as `result.json`, and
`adapter.safetensors`.
"""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from clipbias.files import write_text
from clipbias.training.packs import make_packs
from clipbias.training.workdir import ADAPTER, note_model, open_workdir
from experiments import common, grids

_CONFIG = "configs/train.py"


def main(config: ConfigDict, workdir: Path) -> None:
    options = {config.method: dict(config.method_options)}
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
            common.tell(f"{row['parameters']:,} parameters; adapter in {workdir / ADAPTER}")


if __name__ == "__main__":
    common.run(main, _CONFIG)
