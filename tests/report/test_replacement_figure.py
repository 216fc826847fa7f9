"""The picture of replacements: what is drawn is what the CSV says, and that what the comparisons say."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import Kind, ReplacementResults, save_results
from clipbias.report.replacement import replacement_figure, replacement_message
from tests.report.synthetic import model_replacements, only_sections, replaced_method, synthetic_results
from tools import draw_studies

pytestmark = pytest.mark.ci

DATASETS = ("demo/digits", "demo/fashion")
LABELS = {
    "the method itself, fitted (ceiling)": Kind.CEILING,
    "two vectors, fitted": Kind.FITTED,
    "two vectors, on labels": Kind.LABELS,
    "two vectors, the mean": Kind.MEAN,
}


@pytest.fixture(scope="module")
def studies():
    """Of two datasets: two seeds of IVLP and one of VPT."""
    made = []
    for number, dataset in enumerate(DATASETS):
        ivlp = {f"ivlp_{seed}": model_replacements(10 * number + seed) for seed in (1, 2)}
        vpt = {"vpt": model_replacements(10 * number + 5)}
        methods = (replaced_method(ivlp), replaced_method(vpt, "VPT"))
        study = only_sections(synthetic_results(pictures=1, dataset=dataset), "replacement")
        made.append(dataclasses.replace(study, replacement=ReplacementResults(ivlp | vpt, methods)))
    return made


def test_the_numbers_are_the_comparisons_and_the_picture_is_the_numbers(studies, tmp_path):
    figure = replacement_figure(studies)
    numbers = figure.numbers
    assert len(numbers) == 2 * 2 * 5 and list(numbers["dataset"].unique()) == list(DATASETS)
    for study in studies:
        for method in study.replacement.methods:
            own = numbers[(numbers["dataset"] == study.dataset.name) & (numbers["method"] == method.name)]
            for row, stored in zip(method.rows, own.to_dict("records"), strict=True):
                assert (stored["kind"], stored["form"]) == (row.student.kind, row.student.form)
                assert stored["models"] == len(method.models) and stored["divergence"] == row.divergence.value
                for start, number in {"": row.share, "moved_": row.moved, "difference_": row.difference}.items():
                    ends = [stored[f"{start}{end}"] for end in ("value", "low", "high")]
                    expected = [np.nan] * 3 if number is None else [number.value, number.low, number.high]
                    np.testing.assert_allclose(ends, 100 * np.array(expected, float))
                assert stored["word"] == (row.word or "")
                assert np.isnan(stored["less_ceiling_value"]) == (row.less_ceiling is None)
    drawn = 0
    for axes, (start, dataset) in zip(
        figure.figure.axes, [(start, dataset) for start in ("", "moved_") for dataset in DATASETS], strict=True
    ):
        for container in axes.containers:
            kind = LABELS[container.get_label()]
            rows = numbers[(numbers["dataset"] == dataset) & (numbers["kind"] == kind)]
            (line,) = [part for part in container.get_children() if hasattr(part, "get_xdata")]
            (bars,) = container.lines[2]
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), rows[f"{start}value"])
            np.testing.assert_allclose(
                [segment[:, 0] for segment in bars.get_segments()], rows[[f"{start}low", f"{start}high"]]
            )
            assert [round(y) for y in line.get_ydata()] == [0, 1]  # a place for each method
            drawn += 1
    assert drawn == 2 * 2 * 4
    figure.save(tmp_path)
    stored = pd.read_csv(tmp_path / "replacements.csv", keep_default_na=False, na_values={"less_ceiling_value": ""})
    assert list(stored["word"]) == list(numbers["word"])


def test_the_message_and_the_caption_have_the_numbers(studies):
    figure = replacement_figure(studies, ["IVLP"])
    rows = [study.replacement.methods[0].rows for study in studies]

    def span(values):
        return f"{100 * min(values):.0f} to {100 * max(values):.0f} %"

    shares, moved, best = (
        span(values)
        for values in (
            [row[1].share.value for row in rows],
            [row[1].moved.value for row in rows],
            [row[0].moved.value for row in rows],
        )
    )
    message = (
        f"Two vectors per layer, fitted to each method's outputs, have {shares} of the gain in calibrated"
        f" log-likelihood and make {moved} of the decisions that it moved; the method itself, fitted in the same way,"
        f" makes {best}."
    )
    assert figure.caption.startswith(message)
    drawn = figure.numbers[figure.numbers["method"] == "IVLP"]
    of_form = drawn[(drawn["form"] == "kind") | (drawn["kind"] == Kind.CEILING)]
    without = of_form[of_form["kind"] != Kind.CEILING].assign(value=np.nan)
    assert replacement_message(without).endswith(f"outputs, make {moved} of the decisions that it moved.")
    assert replacement_message(of_form.assign(moved_value=np.nan)) == "No decision was moved."
    with pytest.raises(ClipbiasError, match="nothing was fitted to 'CoOp'; there are IVLP, VPT"):
        replacement_figure(studies, ["CoOp"])
    assert replacement_figure([dataclasses.replace(studies[0], replacement=None)]) is None


def test_the_command(studies, tmp_path, capsys, monkeypatch):
    for each in studies:
        save_results(tmp_path / "study" / each.dataset.name.replace("/", "_"), each)
    for name, value in {"TO": str(tmp_path), "SUFFIX": "_two", "METHODS": []}.items():
        monkeypatch.setattr(draw_studies, name, types.SimpleNamespace(value=value))
    assert draw_studies.main([str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert all(method.sentence in printed for each in studies for method in each.replacement.methods)
    assert (tmp_path / "replacements_two.png").read_bytes()[:4] == b"\x89PNG"
    assert len(pd.read_csv(tmp_path / "replacements_two.csv")) == 20
    assert not (tmp_path / "verdict_two.png").exists()  # there is no verdict
    save_results(tmp_path / "plain", dataclasses.replace(studies[0], replacement=None))
    with pytest.raises(ClipbiasError, match="neither verdicts nor replacements"):
        draw_studies.main([str(tmp_path / "plain")])
