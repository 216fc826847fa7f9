"""The table of fitted forms has the study's numbers."""

import dataclasses

from clipbias.report.fitted_table import fitted_remarks, fitted_table
from tests.report.synthetic import form_logits, synthetic_results


def test_forms_and_their_controls() -> None:
    study = synthetic_results(pictures=1)
    result = study.replacement["ivlp"].forms["kind"]
    logits, labels = form_logits()
    others = (logits.forms["kind"], logits.retrainings["bias"], logits.untaught["kind"]["bias"])
    frozen, tuned, form, again, untaught = (each.argmax(-1) for each in (logits.frozen, logits.tuned, *others))
    table = fitted_table(study)
    assert table is not None
    first, second, third = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (first["Model"], first["Stands for it"], first["Numbers"]) == ("IVLP", "two vectors per layer", "12,345")
    points = 100 * ((form == labels).mean() - (tuned == labels).mean())
    assert first["Accuracy less the model's"].startswith(f"{points:+.1f} (")
    moved = tuned != frozen
    for row, decided in ((first, form), (second, again), (third, untaught)):
        assert row["Same decisions"].startswith(f"{100 * (decided == tuned).mean():.0f} % (")
        assert row["Same moved decisions"].startswith(f"{100 * (decided == tuned)[moved].mean():.0f} % (")
    assert second["Stands for it"] == "Bias tuning, retrained" and third["Stands for it"] == "Bias tuning, by labels"
    assert first["KL (nats)"] == f"{study.replacement['ivlp'].forms['kind'].divergence.value:.3g}"
    assert first["Share of the gain"] in result.sentence
    assert fitted_remarks(study) == [
        result.sentence,
        "Bias tuning: No form learns.",
    ]


def test_a_study_without_the_section_has_none() -> None:
    assert fitted_table(dataclasses.replace(synthetic_results(pictures=1), replacement=None)) is None
