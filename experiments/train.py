"""Tunes one method on one dataset and evaluates it: a sweep of one run.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \\
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `results.jsonl`, the same as `result.json`, and
`adapter.safetensors`.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, read_json_lines
from clipbias.settings import as_json, convert
from clipbias.training.group import make_job
from clipbias.training.metrics import METRICS
from clipbias.training.score import score_test
from clipbias.training.spec import RunSpec
from clipbias.training.sweep import sweep
from clipbias.training.sweep_context import SweepContext
from clipbias.training.workdir import ADAPTER, note_model, open_workdir, write_json
from configs.table1 import Table1Settings
from configs.train import TrainSettings
from experiments import common
from experiments.table1 import dry_run, prepare

_CONFIG = "configs/train.py"
RESULT = "result.json"
# A loss below this share of its first value has fallen.
LEARNED = 0.95


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
        before = _keep_result(workdir, spec)
        notes = {}
        if spec.method != ZERO_SHOT:
            same = before if before.get("key") == spec.key else {}
            known = hosts.from_first(lambda: same.get("zero_shot_accuracy"))
            notes = {"zero_shot_accuracy": zero_shot(context, spec) if known is None else known}
            if hosts.is_first():
                common.tell(f"{ZERO_SHOT} on {spec.dataset}: {notes['zero_shot_accuracy']:.2f} % of test images")
        (row,) = sweep([spec], context, workdir, settings.recipe, single=True, notes={spec.key: notes})
        if hosts.is_first():
            write_json(workdir / RESULT, row)
            common.tell(f"{row['method']} on {row['dataset']}: {row['accuracy']:.2f} % of test images")
            if hint := hardly_learned(read_json_lines(workdir / METRICS), row):
                common.tell(hint)
            common.tell(f"{row['parameters']:,} parameters; adapter in {workdir / ADAPTER}")


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
    )


def zero_shot(context: SweepContext, spec: RunSpec) -> float:
    """The accuracy of the frozen model on the run's test images, in percent."""
    job = make_job((dataclasses.replace(spec, method=ZERO_SHOT, options={}, recipe=None),), context)
    result = score_test(job, {}, job.protocol.evaluations[0])
    return float(result.scores[0]["accuracy"])


def _keep_result(workdir: Path, spec: RunSpec) -> dict[str, Any]:
    """The result that is there. Refuses one of other settings, unless that training learned next to nothing.

    Raises:
      ClipbiasError: it names the settings.
    """
    path = workdir / RESULT
    before = read_json(path, dict) if path.exists() else {}
    other = [name for name, value in spec.facts().items() if name in before and before[name] != value]
    if other and not hardly_learned(read_json_lines(workdir / METRICS), before):
        raise ClipbiasError(
            f"{workdir} holds the adapter of a run with other settings ({', '.join(other)}); choose another --workdir."
        )
    return before


def hardly_learned(lines: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    """What to do where the mean loss of the last third of the steps is hardly below that of the first; else nothing.

    Args:
      lines: of the steps, `METRICS`.
      row: of the run; of one that is trained as its authors do nothing is said.
    """
    losses = [line["loss"] for line in lines if "loss" in line]
    third = max(1, len(losses) // 3)
    first, last = (statistics.fmean(part) if part else 0.0 for part in (losses[:third], losses[-third:]))
    if len(losses) < 2 or "own_recipe" in row or last < LEARNED * first:
        return ""
    return (
        f"the loss hardly fell in {len(losses)} steps, from {first:.3g} to {last:.3g}: try more --config.epochs or "
        f"another --config.learning_rate than {row['learning_rate']:g}, or have one chosen by table1 with "
        "--config.learning_rates."
    )


if __name__ == "__main__":
    common.run(main, _CONFIG)
