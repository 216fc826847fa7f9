"""Verdicts over datasets: each dataset's numbers side by side, and what their mean may say."""

import copy
import dataclasses
import statistics
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.answer import conclude_study
from clipbias.explain.results import Missing, save_results
from clipbias.report.answer_figure import overview_figure
from clipbias.report.endpoint_table import endpoint_table
from clipbias.report.methods import left_out, load_studies, summarize_methods
from clipbias.report.verdict_tables import summary_sentences, summary_table
from tests.report import recomputed
from tests.report.recomputed import ENDS, SHARES, ends
from tests.report.synthetic import NAMES, synthetic_results
from tools import draw_verdict, study_pictures

T_OF_FOUR = 2.7764451051977987  # Student's 97.5 % quantile with four degrees of freedom, from a printed table
KEYS = {"IVLP": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}
DATASETS = ("imagenet", "dtd", "eurosat", "demo/digits", "demo/fashion")


@pytest.fixture(scope="module")
def results():
    """Of five datasets; the last has IVLP of two seeds."""
    return {name: synthetic_results(dataset=name, seed=n, pictures=1, twins=n == 4) for n, name in enumerate(DATASETS)}


@pytest.fixture(scope="module")
def studies(results):
    return list(results.values())


@pytest.fixture(scope="module")
def numbers(results):
    """By method, outcome and dataset, all that was measured, computed anew."""
    by_place = {}
    for name, each in results.items():
        for method, keys in KEYS.items():
            tested = [key for key in keys if key in each.factorial.models]
            for outcome in ("accuracy", "calibrated"):
                by_place[method, outcome, name] = recomputed.effects(each, tested, outcome)
                by_place[method, outcome, name] |= recomputed.alone(each, tested, outcome)
                if method == "IVLP":
                    by_place[method, outcome, name] |= recomputed.constants(each, tested, outcome)
                    by_place[method, outcome, name] |= recomputed.added(each, tested, outcome)
    return by_place


def student(values):
    mean = statistics.fmean(values)
    half = T_OF_FOUR * statistics.stdev(values) / 5**0.5
    return {"value": mean, "low": mean - half, "high": mean + half}


def test_every_number_of_the_picture_is_recomputed(numbers, studies):
    frame = overview_figure(summarize_methods(studies)).numbers
    for _, row in frame.iterrows():
        place = row["method"], row["outcome"]
        if row["dataset"] == "mean":
            values = [numbers[*place, name][row["quantity"]]["value"] for name in DATASETS]
            np.testing.assert_allclose([row[end] for end in ENDS], ends(student(values)), atol=1e-4)
            continue
        numbers_of_row = numbers[*place, row["dataset"]][row["quantity"]]
        np.testing.assert_allclose([row[end] for end in ENDS], ends(numbers_of_row), atol=1e-5)
        if numbers_of_row.get("share") is not None:
            np.testing.assert_allclose([row[name] for name in SHARES], ends(numbers_of_row, SHARES), atol=1e-4)
        assert row["seeds"] == (2 if (row["method"], row["dataset"]) == ("IVLP", "demo/fashion") else 1)
    # Five datasets and their mean: a gain, two corners, effects, interactions, what constants do, and what is added.
    assert set(frame["dataset"]) == {*DATASETS, "mean"}
    assert len(frame) == 2 * 6 * ((1 + 2 + 3 + 4 + 2 * len(NAMES) + 3) + (1 + 2 + 2 + 1))


def test_marks_stand_beside_their_method_in_the_column_of_their_dataset(numbers, studies):
    axes = overview_figure(summarize_methods(studies)).figure.axes
    titles = [each.get_title(loc="left") for each in axes[:6]]
    assert titles == ["ImageNet", "DTD", "EuroSAT", "demo/digits", "demo/fashion", "Mean"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["IVLP", "Bias tuning"]
    for column, name in enumerate(DATASETS):
        for mark, expected in (
            (0, [numbers[method, "accuracy", name]["gain"]["value"] for method in KEYS]),
            (2, [numbers[method, "accuracy", name]["tokens alone"]["value"] for method in KEYS]),
            (4, [numbers["IVLP", "accuracy", name]["mean of what is added"]["value"]]),
        ):
            line = axes[column].containers[mark].lines[0]
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), expected, atol=1e-4)
            assert [round(y) for y in line.get_ydata()] == list(range(len(expected)))


def test_few_datasets_have_no_interval_of_their_mean(numbers, studies):
    ivlp, _ = summarize_methods(studies[:2])
    few = overview_figure(summarize_methods(studies[:2]))
    assert len(few.figure.axes) == 2
    means = few.numbers[few.numbers["dataset"] == "mean"]
    assert means["low"].isna().all() and len(means)
    table = summary_table(ivlp)
    assert table.columns == ("", "ImageNet", "DTD", "Mean")
    gain = next(row for row in table.rows if row[0] == "accuracy, points: gain")
    assert gain[-1] == f"{np.mean([numbers['IVLP', 'accuracy', name]['gain']['value'] for name in DATASETS[:2]]):+.1f}"
    assert summary_sentences(ivlp)[-1].startswith("Nothing follows for other datasets from 2 datasets; from 5 on")


def test_the_table_has_datasets_side_by_side(results, numbers, studies):
    summary = summarize_methods(studies)[0]
    table = summary_table(summary)
    assert table.columns == ("", "ImageNet", "DTD", "EuroSAT", "demo/digits", "demo/fashion (2 seeds)", "Mean")
    rows = {row[0]: row[1:] for row in table.rows}
    of_datasets = [numbers["IVLP", "calibrated", name] for name in DATASETS]

    def change(effects):
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*(round(x, 3) + 0.0 for x in ends(effects)))

    expected = [change(effects["scale × values"]) for effects in of_datasets]
    expected.append(change(student([effects["scale × values"]["value"] for effects in of_datasets])))
    assert list(rows["calibrated log-likelihood, nats: scale × values"]) == expected
    lost = [numbers["IVLP", "accuracy", name]["lost:kind"] for name in DATASETS]
    mean = student([effects["share"] for effects in lost])
    texts = [ends(effects, SHARES, 100) for effects in lost] + [ends(mean, scale=100)]
    expected = ["{} % ({} to {})".format(*map(round, text)) for text in texts]
    assert list(rows["accuracy: lost without the mean as two vectors"]) == expected
    sentences = summary_sentences(summary)
    assert sentences[0] == f"ImageNet: {results['imagenet'].verdict_on(['ivlp']).conclusion}"
    assert sentences[4] == f"demo/fashion: {results['demo/fashion'].verdict_on(KEYS['IVLP']).conclusion}"
    mean = student([numbers["IVLP", "accuracy", name]["gain"]["value"] for name in DATASETS])
    assert "{:+.1f} points ({:+.1f} to {:+.1f}) on average".format(*ends(mean)) in sentences[5]


def test_the_command_draws_studies_and_prints_their_numbers(results, tmp_path, capsys, monkeypatch):
    head = copy.deepcopy(results["imagenet"])
    models = list(head.models)
    for key, label in (("head", "Head"), ("head_2", "Head (seed 2)")):
        models.append(dataclasses.replace(models[1], key=key, label=label, name="Head", method="taskres"))
        head.factorial.models[key] = Missing("Head has no factorial.")
        head.constants.models[key] = Missing("Head has no constants.")
        head.predictions.models[key] = head.predictions.models["ivlp"]
    head = conclude_study(dataclasses.replace(head, models=tuple(models)))
    assert left_out([head]) == ["Head: Head has no factorial."]
    for place, each in enumerate((head, results["dtd"])):
        save_results(tmp_path / "why" / f"study{place}", each)
    picture = tmp_path / "images" / "verdict.png"
    monkeypatch.setattr(study_pictures, "TO", types.SimpleNamespace(value=str(picture)))
    assert draw_verdict.main([str(tmp_path / "why")]) == 0
    printed = capsys.readouterr().out
    assert (
        "accuracy, points: scale × values" in printed
        and "Of the gain in accuracy, what is added to tokens has" in printed
    )
    assert "over all 2 conclusions" in printed and printed.count("IVLP     tokens alone ") == 2
    assert printed.count("Head has no factorial.") == printed.count("Head has no constants.") == 1
    assert "Not in it: Head: Head has no factorial." in printed  # whatever the seeds
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.with_suffix(".csv").read_text().count("\n") == 1 + 2 * 3 * (13 + 2 * len(NAMES) + 6)
    confirmed = pd.read_csv(tmp_path / "images" / "verdict_confirmed.csv", dtype=str)
    table = endpoint_table([head, results["dtd"]])
    assert confirmed.values.tolist() == [list(row) for row in table.rows] and len(confirmed) == 2
    save_results(tmp_path / "why" / "again", results["dtd"])
    with pytest.raises(ClipbiasError, match="both hold IVLP on dtd"):
        draw_verdict.main([str(tmp_path / "why")])


def test_methods_that_were_studied_apart_stand_together(results, tmp_path):
    """Two studies of one dataset are drawn together as long as no method is in both."""
    first = results["dtd"]
    models = [
        dataclasses.replace(model, name=f"Other {model.name}", label=f"Other {model.label}") for model in first.models
    ]
    second = conclude_study(dataclasses.replace(first, models=tuple(models)))
    for name, study in (("first", first), ("elsewhere", results["imagenet"]), ("second", second)):
        save_results(tmp_path / name, study)
    studies = load_studies([tmp_path / name for name in ("first", "elsewhere", "second")])
    assert [path.name for path in studies] == ["elsewhere", "first", "second"]
    numbers = overview_figure(summarize_methods(list(studies.values()))).numbers
    of_dtd = numbers[numbers["dataset"] == "dtd"].set_index("method")["value"]
    assert set(of_dtd.index) == {"IVLP", "Bias tuning", "Other IVLP", "Other Bias tuning"}
    for name in KEYS:
        np.testing.assert_array_equal(of_dtd[name], of_dtd[f"Other {name}"])
