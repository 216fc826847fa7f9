"""The verdict's numbers as tables, pictures and files, recomputed from the images' outcomes."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import Kind, Labels, What, Where, save_results
from clipbias.explain.verdict import judge, sentence
from clipbias.report.overview import load_studies
from clipbias.report.verdict import (
    COLUMNS,
    overview_figure,
    seed_table,
    shown_methods,
    verdict_figure,
    verdict_frame,
    verdict_table,
)
from tests.report import recomputed
from tests.report.recomputed import ENDS, PAIRS, SHARES
from tests.report.synthetic import synthetic_results
from tools import draw_studies

KEYS = {"IVLP": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}
DATASETS = ("imagenet", "dtd", "demo/fashion")


@pytest.fixture(scope="module")
def results():
    """Of three datasets; the last has IVLP of two seeds."""
    return {name: synthetic_results(dataset=name, seed=n, pictures=1, twins=n == 2) for n, name in enumerate(DATASETS)}


@pytest.fixture(scope="module")
def studies(results):
    return list(results.values())


@pytest.fixture(scope="module")
def numbers(results):
    """By method, outcome and dataset, all quantities computed anew."""
    return {
        (method, outcome, name): recomputed.quantities(
            each, [key for key in keys if key in each.causal.models], outcome
        )
        for name, each in results.items()
        for method, keys in KEYS.items()
        for outcome in ("accuracy", "calibrated")
    }


def test_every_number_of_the_file_is_recomputed(numbers, studies):
    frame = verdict_frame(studies)
    for _, row in frame.iterrows():
        expected = numbers[row["method"], row["outcome"], row["dataset"]][row["quantity"]]
        np.testing.assert_allclose([row[end] for end in ENDS], [expected[end] for end in ENDS], atol=1e-4)
        assert np.isfinite(row["share"]) == ("share" in expected)
        if "share" in expected:
            np.testing.assert_allclose([row[end] for end in SHARES], [expected[end] for end in SHARES], atol=1e-3)
        assert row["seeds"] == (2 if (row["method"], row["dataset"]) == ("IVLP", "demo/fashion") else 1)
    assert len(frame) == len(DATASETS) * len(KEYS) * 2 * len(PAIRS)
    labels = frame.drop_duplicates(["dataset", "method"]).set_index(["dataset", "method"])
    assert labels.loc[("dtd", "Bias tuning"), "what"] == "the same for every image"
    assert set(labels["where"]) <= {"not attention", "undecided"}


def test_the_table_has_both_outcomes_of_every_method(results, numbers):
    study = results["demo/fashion"]
    table = verdict_table(study, shown_methods(study))
    rows = [tuple(row) for row in table.rows]
    assert list(table.columns) == [*COLUMNS]
    assert [row[:2] for row in rows] == [
        *(("IVLP, 2 seeds", "points"), ("IVLP, 2 seeds", "nats, %")),
        *(("Bias tuning", "points"), ("Bias tuning", "nats, %")),
    ]
    heads = ["gain", *list(PAIRS)[1:]]
    for row, method in zip(rows, ("IVLP", "IVLP", "Bias tuning", "Bias tuning"), strict=True):
        assert len(row) == len(COLUMNS) == 4 + len(heads)
        outcome = "accuracy" if row[1] == "points" else "calibrated"
        for text, quantity in zip(row[2:-2], heads, strict=True):
            of_quantity = numbers[method, outcome, "demo/fashion"][quantity]
            if outcome == "accuracy" or quantity == "gain":
                digits = 1 if outcome == "accuracy" else 3
                middle, low, high = (f"{round(of_quantity[end], digits) + 0.0:+.{digits}f}" for end in ENDS)
                assert text == f"{middle} ({low} to {high})"
            else:
                middle, low, high = (round(100 * of_quantity[end]) for end in SHARES)
                assert text == f"{middle} % ({low} to {high})"
    seeds = seed_table(study).rows
    assert [row[0] for row in seeds] == ["IVLP", "IVLP", "IVLP (seed 2)", "IVLP (seed 2)"]
    alone = recomputed.quantities(study, ["ivlp_seed2"], "calibrated")["gain"]["value"]
    assert seeds[3][2].startswith(f"{alone:+.3f}")


def test_the_table_has_two_vectors_beside_their_ceiling(results):
    """Moved decisions in the first row, the share of the gain below; dashes where nothing was fitted."""
    study = results["demo/fashion"]
    table = verdict_table(study, study.methods)
    by_image = study.replacement.models["ivlp"].by_image
    plain, tuned, *others = by_image.decisions.T
    gains = by_image.calibrated.mean(0)
    (method,) = study.replacement.methods
    ivlp, ivlp_below, *bias = (row[-2:] for row in table.rows)
    assert bias == [["–", "–"]] * 2
    for place, kind in enumerate((Kind.FITTED, Kind.CEILING)):
        (k,) = [k for k, each in enumerate(by_image.students) if each.kind is kind]
        (row,) = [row for row in method.rows if row.student.kind is kind]
        moved = 100 * np.mean(others[k][plain != tuned] == tuned[plain != tuned])
        share = 100 * (gains[2 + k] - gains[0]) / (gains[1] - gains[0])
        for text, value, number in ((ivlp[place], moved, row.moved), (ivlp_below[place], share, row.share)):
            assert text == f"{value:.0f} % ({100 * number.low:.0f} to {100 * number.high:.0f})"
    without = dataclasses.replace(study, replacement=None)
    assert verdict_table(without, study.methods).columns == list(COLUMNS[:-2])
    seeds = [row[-2:] for row in seed_table(study).rows]
    assert seeds == [ivlp, ivlp_below, *bias]  # only the first seed was fitted to


def test_marks_stand_in_the_row_of_their_quantity(results, numbers):
    drawing = verdict_figure(results["dtd"])
    (axes,) = drawing.figure.axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == [row for method in KEYS for row in (method, *list(PAIRS)[1:])]
    marks = {}
    for container in axes.containers:
        line = container.lines[0]
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            marks[round(y)] = float(x)
    for place, row in enumerate(rows):
        if row not in KEYS:
            method = "IVLP" if place < len(PAIRS) else "Bias tuning"
            expected = 100 * numbers[method, "calibrated", "dtd"][row]["share"]
            assert marks[place] == pytest.approx(expected, abs=0.1), row
    pd.testing.assert_frame_equal(drawing.numbers, verdict_frame([results["dtd"]]))


def test_datasets_have_a_panel_each(numbers, studies):
    drawing = overview_figure(studies)
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes[:3]]
    assert titles == ["ImageNet", "DTD", "demo/fashion"]
    axes = drawing.figure.axes[1]
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["IVLP", "Bias tuning"]
    exchange = axes.containers[-1].lines[0]
    expected = [100 * numbers[method, "calibrated", "dtd"]["exchange"]["share"] for method in KEYS]
    np.testing.assert_allclose(np.asarray(exchange.get_xdata(), float), expected, atol=0.1)


def test_a_study_without_a_sure_gain_has_no_picture(results):
    causal = results["dtd"].causal
    unsure = {}
    for key, each in causal.numbers.items():
        no_gain = dataclasses.replace(each.calibrated.gain, low=-1.0)
        parts = {
            name: dataclasses.replace(getattr(each.calibrated, name), share=None) for name in ("attention", "tokens")
        }
        calibrated = dataclasses.replace(each.calibrated, gain=no_gain, image=None, **parts)
        unsure[key] = dataclasses.replace(each, calibrated=calibrated)
    study = judge(dataclasses.replace(results["dtd"], causal=dataclasses.replace(causal, numbers=unsure)))
    assert verdict_figure(study) is None and overview_figure([study]) is None
    assert all(method.labels.where.value == "no gain" for method in study.methods)
    rows = verdict_table(dataclasses.replace(study, replacement=None), study.methods).rows
    assert {text for row in rows[1::2] for text in row[3:]} == {"–"}


def test_the_command_draws_studies_and_prints_their_sentences(results, tmp_path, capsys, monkeypatch):
    for place, name in enumerate(("imagenet", "dtd")):
        save_results(tmp_path / "why" / f"study{place}", results[name])
    picture = tmp_path / "images" / "verdict.png"
    for name, value in {"TO": str(picture.parent), "SUFFIX": "", "METHODS": []}.items():
        monkeypatch.setattr(draw_studies, name, types.SimpleNamespace(value=value))
    assert draw_studies.main([str(tmp_path / "why")]) == 0
    printed = capsys.readouterr().out
    for name in ("imagenet", "dtd"):
        for method in results[name].methods:
            assert method.sentence in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert len(pd.read_csv(picture.with_suffix(".csv"))) == 2 * 2 * 2 * len(PAIRS)
    save_results(tmp_path / "why" / "again", results["dtd"])
    with pytest.raises(ClipbiasError, match="both hold IVLP on dtd"):
        draw_studies.main([str(tmp_path / "why")])


def test_methods_that_were_studied_apart_stand_together(results, tmp_path):
    """Two studies of one dataset are drawn together as long as no method is in both."""
    first = results["dtd"]
    models = [
        dataclasses.replace(model, name=f"Other {model.name}", label=f"Other {model.label}") for model in first.models
    ]
    second = judge(dataclasses.replace(first, models=tuple(models)))
    for name, study in (("first", first), ("elsewhere", results["imagenet"]), ("second", second)):
        save_results(tmp_path / name, study)
    studies = load_studies([tmp_path / name for name in ("first", "elsewhere", "second")])
    assert [path.name for path in studies] == ["elsewhere", "first", "second"]
    frame = verdict_frame(list(studies.values()))
    of_dtd = frame[frame["dataset"] == "dtd"].set_index("method")["value"]
    assert set(of_dtd.index) == {"IVLP", "Bias tuning", "Other IVLP", "Other Bias tuning"}


def test_where_hardly_anything_is_added_nothing_is_shared_out(results):
    (ivlp, _) = results["dtd"].methods
    labels = Labels(Where.ATTENTION, What.NOTHING)
    row = verdict_table(results["dtd"], [dataclasses.replace(ivlp, labels=labels)]).rows[1]
    assert row[COLUMNS.index("All added")] != "–" and set(row[COLUMNS.index("All added") + 1 : -2]) == {"–"}
    assert "another image" not in sentence("IVLP", "dtd", labels, ivlp.numbers, 50)
