"""What each method can be exchanged for, as a table: fitted forms, the ceiling and controls."""

from clipbias.explain.results import Comparison, Kind, StudyResults
from clipbias.explain.wording import change, in_points
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict import share_text

_COLUMNS = (
    "Method",
    "Stands for it",
    "Numbers",
    "Share of the gain",
    "Accuracy less the method's",
    "KL (nats)",
    "Same decisions",
    "Same moved decisions",
    "Less the ceiling's",
    "Cosine",
    "Conclusion",
)
_CAPTION = (
    "Forms that learned each method's outputs of training images without labels, on the study's images. The ceiling:"
    " the method itself, fitted in the same way from another start. Share: of the gain in calibrated log-likelihood; a"
    " dash where the gain is not surely above 0. Accuracy: the paired difference in points. KL: from the method to what"
    " stands for it. Moved: images whose decision tuning changed; less the ceiling's in points. Cosine: between what"
    " both change of the frozen model's image features. Mean: of what the method's blocks add, to which nothing was"
    " fitted. Retrained: the method on the same labelled images with another start, which says how reproducible a"
    " training is, and no more. On labels: the form's own method trained on the labels of the same images. In brackets"
    " 95 % intervals. A fit is a lower bound on what a form can do."
)
_WORDS = {
    Kind.FITTED: "{}",
    Kind.CEILING: "the ceiling: {}",
    Kind.MEAN: "the mean: {}",
    Kind.LABELS: "{}, on labels",
    Kind.RETRAINED: "{}, retrained",
}


def replacement_table(study: StudyResults) -> Table | None:
    """A row per method and what stands in its place; `None` where nothing was fitted."""
    methods = study.replacement.methods if study.replacement else ()
    rows = [_row(method.name, row) for method in methods for row in method.rows]
    return Table("", _CAPTION, _COLUMNS, tuple(rows), words={1, 10}) if rows else None


def _row(name: str, row: Comparison) -> tuple[str, ...]:
    return cells(
        name,
        _WORDS[row.student.kind].format(row.student.words),
        f"{row.student.numbers:,}",
        share_text(row.share),
        MISSING if row.difference is None else change(in_points(row.difference), "accuracy"),
        f"{row.divergence.value:.3g}",
        share_text(row.agreement),
        share_text(row.moved),
        MISSING if row.less_ceiling is None else change(in_points(row.less_ceiling), "accuracy"),
        MISSING if row.cosine is None else f"{row.cosine.value:.2f}",
        row.word.value if row.word else "",
    )
