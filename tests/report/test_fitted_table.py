"""The table of fitted forms has the study's numbers."""

import dataclasses

import numpy as np
from scipy.special import log_softmax

from clipbias.report.fitted_table import fitted_remarks, fitted_table
from tests.report.synthetic import form_candidates, synthetic_results


def test_forms_and_their_controls() -> None:
    study = synthetic_results(pictures=1)
    result = study.replacement["ivlp"].forms["kind"]
    candidates, labels = form_candidates()
    others = (
        candidates.fitted["kind"],
        candidates.means["kind"],
        candidates.retrainings["bias"],
        candidates.untaught["kind"]["bias"],
    )
    frozen, tuned = candidates.frozen, candidates.tuned
    table = fitted_table(study)
    assert table is not None
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    moved = tuned.decisions != frozen.decisions
    for row, other in zip(rows, others, strict=True):
        same = other.decisions == tuned.decisions
        assert row["Model"] == "IVLP" and row["Numbers"] == f"{other.numbers:,}"
        points = 100 * ((other.decisions == labels).mean() - (tuned.decisions == labels).mean())
        assert row["Accuracy less the model's"].startswith(f"{points:+.1f} (")
        assert row["Same decisions"].startswith(f"{100 * same.mean():.0f} % (")
        assert row["Same moved decisions"].startswith(f"{100 * same[moved].mean():.0f} % (")
        changes = [each.features - frozen.features for each in (tuned, other)]
        units = [change / np.linalg.norm(change, axis=1)[:, None] for change in changes]
        assert row["Cosine"] == f"{(units[0] * units[1]).sum(1).mean():.2f}"
        log_p, log_q = log_softmax(tuned.logits, 1), log_softmax(other.logits, 1)
        assert row["KL (nats)"] == f"{(np.exp(log_p) * (log_p - log_q)).sum(1).mean():.3g}"
    assert [row["Stands for it"] for row in rows] == [
        "two vectors per layer",
        "the mean: two vectors per layer",
        "Bias tuning, retrained",
        "Bias tuning, by labels",
    ]
    assert rows[0]["Share of the gain"] in result.sentence
    assert fitted_remarks(study) == [
        result.sentence,
        "Bias tuning: No form learns.",
    ]


def test_a_study_without_the_section_has_none() -> None:
    assert fitted_table(dataclasses.replace(synthetic_results(pictures=1), replacement=None)) is None
