"""Writes what a study, and a sweep, say of each observation of the paper as a CSV: what docs/paper.md is made of.

    python -m tools.paper_table workdir/paper_why --sweep=workdir/paper --csv=docs/images/paper.csv

The argument is a folder of `experiments.explain` with the sections `observations` and those of the causal test; the
sweep is one of `experiments.table1` with `bias` and `ivlp_matched`. Without a study there are the sweep's rows alone:

    python -m tools.paper_table --sweep=workdir/demo_full --csv=docs/images/demo_pairs.csv
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import app, flags

from clipbias.analysis.observations import OBSERVATIONS, Observation, decide
from clipbias.analysis.results_file import load_results
from clipbias.errors import ClipbiasError
from clipbias.intervals import Z_95, Estimate
from clipbias.io import read_json_lines
from clipbias.report import read_sweep
from clipbias.report.frames import ACCURACY, Sweep, difference_error
from clipbias.report.names import dataset_name, method_name
from clipbias.report.pages import write_csv
from clipbias.training.predictions import PREDICTIONS_FOLDER
from clipbias.training.sweep import RESULTS
from experiments import common

SWEEP = flags.DEFINE_string("sweep", None, "The folder of experiments.table1; None leaves Table 1's observation out.")
OUTPUT = flags.DEFINE_string("csv", "paper.csv", "The CSV to write.")


# Methods of as many parameters, one vector per layer and tower.
BIAS = "bias"
PROMPTS = "ivlp_matched"


def bias_above_prompts(sweep: Sweep) -> tuple[Observation, ...]:
    """Table 1's observation, of each dataset: at equal numbers a bias is more accurate than prompts.

    Args:
      sweep: with the methods "bias" and "ivlp_matched", whose most shots count.

    Returns:
      The difference in points with its interval: test images compared in pairs, and seeds (`report.frames`). Empty
      where either method is missing.
    """
    rows = []
    for dataset in sweep.datasets:
        bias, prompts = (sweep.cells.get((ACCURACY, method, dataset, sweep.shots[-1])) for method in (BIAS, PROMPTS))
        if bias is None or prompts is None:
            continue
        difference = float(bias["mean"] - prompts["mean"])
        half = Z_95 * difference_error(bias, prompts)
        number = Estimate(difference, difference - half, difference + half)
        rows.append(
            Observation(
                source="Table 1",
                claim="A bias is better than prompts at equal numbers",
                method=f"{method_name(BIAS)} and {method_name(PROMPTS)}, {dataset_name(dataset)}",
                statistic="difference of accuracies",
                unit="points",
                number=number,
                samples=int(bias["images"]),
                outcome=decide(number, 0, float("inf")),
            )
        )
    return tuple(rows)


def observation_frame(rows: Sequence[Observation]) -> pd.DataFrame:
    """A line for each observation, with the ends of its interval: what CSV files hold."""
    columns = ("source", "claim", "method", "statistic", "unit", "value", "low", "high", "samples", "outcome")
    lines = []
    for row in rows:
        number = (None,) * 3 if row.number is None else (row.number.value, row.number.low, row.number.high)
        lines.append(
            (row.source, row.claim, row.method, row.statistic, row.unit, *number, row.samples, row.outcome.value)
        )
    return pd.DataFrame(lines, columns=columns)


def main(studies: Sequence[str]) -> int:
    """Writes the file; returns the exit status."""
    if len(studies) > 1 or not (studies or SWEEP.value):
        raise ClipbiasError(
            "give a finished study, a sweep, or both: python -m tools.paper_table FOLDER --sweep=SWEEP."
        )
    rows: list[Observation] = []
    for folder in studies:
        study = load_results(Path(folder).expanduser())
        observations = OBSERVATIONS.of(study)
        if observations is None:
            raise ClipbiasError(f"{folder} has no observations; run the study with --config.sections=all.")
        rows += observations.rows
    if SWEEP.value is not None:
        sweep = Path(SWEEP.value).expanduser()
        lines = read_json_lines(sweep / RESULTS)
        if not lines:
            raise ClipbiasError(f"{sweep} holds no {RESULTS}; give a folder of experiments.table1.")
        rows += bias_above_prompts(read_sweep(lines, sweep / PREDICTIONS_FOLDER))
    write_csv(Path(OUTPUT.value).expanduser(), observation_frame(rows))
    common.tell(OUTPUT.value)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
