"""The confirmatory conclusions of one study or several, as a table; all other tables are exploratory."""

from collections.abc import Sequence

from clipbias.explain.conclusions import NO_GAIN
from clipbias.explain.endpoint import RESAMPLES, WRONG, Conclusion, conclude_cells
from clipbias.explain.results import StudyResults
from clipbias.explain.uncertainty import LEVEL, excludes
from clipbias.explain.wording import change
from clipbias.report.published import dataset_name
from clipbias.report.table import Table, cells

TITLE = "Confirmatory conclusions"
_COLUMNS = (
    "Dataset",
    "Model",
    "More than half of the gain",
    "Gain (nats)",
    "Above half of it (nats)",
    "p",
    "p (Holm)",
    "Verdict",
    "Above half of it (points)",
)
_CAPTION = (
    "Tokens alone: what the tuned model adds to tokens, its attention frozen. Constant: the mean of what is added to"
    " images, against nothing, all else as tuned. Each against half of the gain, in calibrated log-likelihood; accuracy"
    f" in points stands beside it. In brackets {100 * LEVEL:.0f} % intervals over images, and over seeds where there"
    f" are several. p: one-sided, of {RESAMPLES:,} resamples, and after Holm's correction over all {{count}}"
    f" conclusions of this table; with at most {100 * WRONG:.0f} % probability any of those that are shown is wrong."
    " All other numbers are exploratory."
)


def endpoint_table(studies: Sequence[StudyResults]) -> Table | None:
    """A row for each conclusion, corrected over all of the studies; `None` where there is none."""
    pairs = [(study, cell) for study in studies if study.factorial for cell in study.factorial.cells]
    concluded = conclude_cells([cell for _, cell in pairs])
    rows = []
    for (study, cell), conclusions in zip(pairs, concluded, strict=True):
        label = next(method.label for method in study.methods if method.models == cell.models)
        rows += [_row(dataset_name(study.dataset.name), label, each) for each in conclusions]
    return Table(TITLE, _CAPTION.format(count=len(rows)), _COLUMNS, tuple(rows), words={1, 2, 7}) if rows else None


def _row(dataset: str, label: str, conclusion: Conclusion) -> tuple[str, ...]:
    test = conclusion.test
    return cells(
        dataset,
        label,
        test.name,
        change(conclusion.gain, "calibrated"),
        change(test.calibrated, "calibrated"),
        _probability(test.p),
        _probability(conclusion.adjusted),
        _verdict(conclusion),
        change(test.accuracy, "accuracy"),
    )


def _verdict(conclusion: Conclusion) -> str:
    if excludes(conclusion.gain) <= 0:
        return NO_GAIN
    return "shown" if conclusion.is_shown else "not shown"


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
