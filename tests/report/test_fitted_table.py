"""The table of what can stand for a method has the study's numbers."""

import dataclasses

import numpy as np
from scipy.special import log_softmax

from clipbias.explain.results import Kind
from clipbias.report.fitted_table import fitted_remarks, fitted_table
from tests.report.synthetic import STUDENTS, form_outputs, synthetic_results


def test_a_row_for_all_that_stands_in_a_methods_place() -> None:
    study = synthetic_results(pictures=1)
    (method,) = study.replacement.methods
    (frozen, tuned, *others), labels = form_outputs()
    table = fitted_table(study.replacement.methods)
    assert table is not None
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    decided = tuned.logits.argmax(-1)
    moved = decided != frozen.logits.argmax(-1)
    ceiling = 100 * (others[0].logits.argmax(-1) == decided)[moved].mean()
    for row, student, other in zip(rows, STUDENTS, others, strict=True):
        same = other.logits.argmax(-1) == decided
        assert row["Method"] == "IVLP" and row["Numbers"] == f"{student.numbers:,}"
        points = 100 * ((other.logits.argmax(-1) == labels).mean() - (decided == labels).mean())
        assert row["Accuracy less the method's"].startswith(f"{points:+.1f} (")
        assert row["Same decisions"].startswith(f"{100 * same.mean():.0f} % (")
        assert row["Same moved decisions"].startswith(f"{100 * same[moved].mean():.0f} % (")
        log_p, log_q = log_softmax(tuned.logits, 1), log_softmax(other.logits, 1)
        assert row["KL (nats)"] == f"{(np.exp(log_p) * (log_p - log_q)).sum(1).mean():.3g}"
        is_form = student.kind is Kind.FITTED
        assert (row["Conclusion"] == method.rows[1].word) == is_form
        if is_form:
            assert row["Less the ceiling's"].startswith(f"{100 * same[moved].mean() - ceiling:+.1f} (")
            assert row["Share of the gain"].startswith(f"{100 * method.rows[1].share.value:.0f} % (")
    assert [row["Stands for it"] for row in rows] == [
        "the ceiling: IVLP itself, from another start",
        "two vectors per layer",
        "the mean: two vectors per layer",
        "IVLP (seed 1, start 2), retrained",
        "Bias tuning, on labels",
    ]
    assert fitted_remarks(study) == [method.sentence, "Bias tuning: No form learns."]


def test_a_study_without_the_section_has_none() -> None:
    without = dataclasses.replace(synthetic_results(pictures=1), replacement=None)
    assert fitted_table(()) is None and fitted_remarks(without) == []
