"""How much a replacement depends on the fit: the same adapters, fitted again with other starts and orders of images.

    clipbias explain --config.adapters=FILE --config.sections=predictions,replacement --config.seed=1 --workdir=FOLDER
    python -m tools.fit_noise STUDY... --to=docs/images/fit_noise.csv

The arguments are finished studies of one dataset that differ in `--config.seed`. The CSV has a row for each form of
each adapter that all of them fitted, with mean and standard deviation over the fits.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import app

from clipbias.errors import ClipbiasError
from clipbias.explain.results import FittedReplacements, StudyResults, load_results, present
from clipbias.explain.results.replacement import Comparison
from clipbias.report.captioned import write_csv
from experiments import common
from tools.study_pictures import TO


def fit_noise(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """A row for each adapter and form: mean and standard deviation over fits of the numbers of `measured`.

    Raises:
      ClipbiasError: no adapter was fitted in all studies, or there are fewer than two.
    """
    fitted = [_by_source(study) for study in studies]
    everywhere = set.intersection(*map(set, fitted)) if len(fitted) > 1 else set()
    rows = []
    for source in sorted(everywhere):
        for form in fitted[0][source].forms:
            values = pd.DataFrame([measured(of_study[source].forms[form].comparison) for of_study in fitted])
            spread = {"fits": len(fitted)} | values.mean().add_suffix("_mean").to_dict()
            rows.append(
                {"adapter": Path(source).stem, "form": form} | spread | values.std().add_suffix("_sd").to_dict()
            )
    if not rows:
        raise ClipbiasError("no adapter was fitted in all of these; give two or more studies of the same adapters.")
    return pd.DataFrame(rows)


def _by_source(study: StudyResults) -> dict[str, FittedReplacements]:
    """What was fitted to each adapter, by its file."""
    fitted = present(study.replacement or {})
    return {model.source: fitted[model.key] for model in study.tuned if model.key in fitted}


def measured(form: Comparison) -> dict[str, float]:
    """In percent: the share of the gain in calibrated log-likelihood and of moved decisions, and points of accuracy."""
    share, moved = form.kept.calibrated.share, form.agreement.moved
    return {
        "share": float("nan") if share is None else 100 * share.value,
        "moved": float("nan") if moved is None else 100 * moved.value,
        "difference": 100 * form.difference.value,
    }


def main(names: Sequence[str]) -> int:
    """Writes the CSV; returns the exit status."""
    numbers = fit_noise([load_results(Path(name).expanduser()) for name in names])
    write_csv(Path(TO.value).expanduser().with_suffix(".csv"), numbers)
    print(numbers.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
