"""Writes what a study, and a sweep, say of each observation of the paper as a CSV: what docs/paper.md is made of.

    python -m tools.paper_table workdir/paper_why --sweep=workdir/paper --to=docs/images/paper.csv

The argument is a folder of `experiments.explain` with the sections `observations` and those of the causal test; the
sweep is one of `experiments.table1` with `bias` and `ivlp_matched`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.explain.results import Observation, load_results
from clipbias.io import read_json_lines
from clipbias.report import read_sweep
from clipbias.report.captions import write_csv
from clipbias.report.observations import bias_above_prompts, observation_frame
from clipbias.training.evaluate import FOLDER as PREDICTIONS
from clipbias.training.sweep import RESULTS
from experiments import common

SWEEP = flags.DEFINE_string("sweep", None, "The folder of experiments.table1; None leaves Table 1's observation out.")
OUTPUT = flags.DEFINE_string("to", "paper.csv", "The CSV to write.")


def rows(folder: str, sweep: str | None) -> list[Observation]:
    """The observations of a study, and of a sweep.

    Raises:
      ClipbiasError: the study has none, or a folder holds no results.
    """
    study = load_results(Path(folder).expanduser())
    if study.observations is None:
        raise ClipbiasError(f"{folder} has no observations; run the study with --config.sections=all.")
    found = list(study.observations.rows)
    if sweep is not None:
        place = Path(sweep).expanduser()
        lines = read_json_lines(place / RESULTS)
        if not lines:
            raise ClipbiasError(f"{place} holds no {RESULTS}; give a folder of experiments.table1.")
        found += bias_above_prompts(read_sweep(lines, place / PREDICTIONS))
    return found


def main(names: Sequence[str]) -> int:
    """Writes the file; returns the exit status."""
    if len(names) != 1:
        raise ClipbiasError("give one finished study: python -m tools.paper_table FOLDER --to=FILE.csv.")
    write_csv(Path(OUTPUT.value).expanduser(), observation_frame(rows(names[0], SWEEP.value)))
    common.tell(OUTPUT.value)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
