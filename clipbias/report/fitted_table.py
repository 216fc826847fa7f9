"""What each tuned model can be exchanged for, as a table: forms fitted to its predictions, and their controls."""

from clipbias.explain.results import Comparison, StudyResults, present
from clipbias.explain.wording import by_reason, change, in_points
from clipbias.report.study_figures import labels_of
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_tables import share_text

_COLUMNS = (
    "Model",
    "Stands for it",
    "Numbers",
    "Share of the gain",
    "Accuracy less the model's",
    "KL (nats)",
    "Same decisions",
    "Same moved decisions",
    "Cosine",
)
_CAPTION = (
    "Forms that learned each model's predictions of training images without labels, and what they do on the study's"
    " images. Share: of the gain in calibrated log-likelihood over the frozen model; a dash where the gain is not"
    " surely above 0. Accuracy: the paired difference in points. KL: from the model to the form, a mean over images."
    " Moved: images whose decision tuning changed. Cosine: between what the form and what the model change of the"
    " frozen model's image features (of unit length), a mean over images; texts and heads are not in it, and a dash"
    " stands where one of the two moves no image feature. Mean: of what the model's blocks add, to which nothing was"
    " fitted. Retrained: the same method on the same few-shot split with another start; by labels: the form's own"
    " method trained on the labels of that split. In brackets 95 % intervals over images. A fit is a lower bound on"
    " what a form can do."
)


def fitted_table(study: StudyResults) -> Table | None:
    """A row per model and form, then the models beside them; `None` where nothing was fitted."""
    labels = labels_of(study.tuned)
    rows = []
    for key, result in present(study.replacement).items():
        label = labels[key]
        rows += [_row(label, form.words, form.comparison) for form in result.forms.values()]
        rows += [_row(label, f"the mean: {result.forms[form].words}", mean) for form, mean in result.means.items()]
        rows += [_row(label, f"{labels[other]}, retrained", again) for other, again in result.retrainings.items()]
        for others in result.untaught.values():
            rows += [_row(label, f"{labels[other]}, by labels", model) for other, model in others.items()]
    return Table("", _CAPTION, _COLUMNS, tuple(rows), words={1}) if rows else None


def fitted_remarks(study: StudyResults) -> list[str]:
    """The conclusion on each form, and why models have none."""
    sentences = [form.sentence for result in present(study.replacement).values() for form in result.forms.values()]
    labels = labels_of(study.tuned)
    reasons = study.why_missing("replacement")
    return sentences + by_reason((labels[key], reason) for key, reason in reasons.items())


def _row(label: str, words: str, other: Comparison) -> tuple[str, ...]:
    return cells(
        label,
        words,
        f"{other.numbers:,}",
        share_text(other.kept.calibrated.share),
        change(in_points(other.difference), "accuracy"),
        f"{other.divergence.value:.3g}",
        share_text(other.agreement.every),
        share_text(other.agreement.moved),
        MISSING if other.cosine is None else f"{other.cosine.value:.2f}",
    )
