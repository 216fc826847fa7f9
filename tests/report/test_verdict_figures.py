"""What the verdict's figures and tables show is what the images' outcomes give, computed anew."""

import dataclasses
import re

import numpy as np
import pytest

from clipbias.explain.answer import conclude_study
from clipbias.explain.effects import OUTCOME_NAMES
from clipbias.explain.results import ByOutcome, Missing
from clipbias.explain.uncertainty import Estimate
from clipbias.report import verdict_figures, verdict_tables
from clipbias.report.methods import study_methods
from tests.report import recomputed
from tests.report.recomputed import SHARES, ends
from tests.report.synthetic import NAMES, only_sections, synthetic_results

UNITS = {"accuracy": ("points", 1), "calibrated": ("nats", 3)}
KEYS = {"IVLP, 2 seeds": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}
EFFECTS = ("attention", "scale", "values")


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1, twins=True)


@pytest.fixture(scope="module")
def methods(results):
    return study_methods(results)


def same(row, expected, scale=1.0):
    np.testing.assert_allclose([row[end] for end in ("value", "low", "high")], ends(expected, scale=scale), atol=1e-5)


def test_every_number_of_the_effects_is_recomputed(results, methods):
    frame = verdict_figures.effects_figure(methods).numbers
    for (method, outcome, tower), rows in frame.groupby(["method", "outcome", "tower"]):
        expected = recomputed.effects(results, KEYS[method], outcome, tower)
        for _, row in rows.iterrows():
            if row["quantity"] == "random":
                same(row, recomputed.effects(results, "ivlp:random", outcome)["gain"])
                continue
            numbers_of_row = expected[{"all": "gain"}.get(row["quantity"], row["quantity"])]
            same(row, numbers_of_row)
            if numbers_of_row.get("share") is not None:
                np.testing.assert_allclose([row[name] for name in SHARES], ends(numbers_of_row, SHARES), atol=1e-4)
    # In three towers and two outcomes: three effects, four interactions and the gain, or two, one and it; the control.
    assert len(frame) == 2 * 3 * (8 + 4) + 2


def test_bars_stand_in_the_panel_that_names_them(results, methods):
    figure = verdict_figures.effects_figure(methods).figure
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Accuracy (points)", "Calibrated log-likelihood (nats)", "", ""]
    numbers = recomputed.effects(results, KEYS["IVLP, 2 seeds"], "accuracy")
    first = figure.axes[0]
    names = [*EFFECTS, "all", *(name for name in numbers if "×" in name)]
    assert [text.get_text() for text in first.get_yticklabels()] == [*names, "random"]
    expected = [numbers[{"all": "gain"}.get(name, name)]["value"] for name in names]
    texts = [text.get_text() for text in first.texts if text.get_text() not in ("", "//")]
    assert texts[:-1] == [f"{value:+.1f}".replace("-", "−") for value in expected]
    # Effects in both towers, then in each alone, then the gain in both.
    widths = [bar.get_width() for bar in first.patches]
    np.testing.assert_allclose([*widths[:3], widths[9]], expected[:4])


def change(numbers, outcome):
    value, low, high = (round(x, UNITS[outcome][1]) + 0.0 for x in ends(numbers))
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(value, low, high, d=UNITS[outcome][1])


def share(numbers):
    if numbers["share"] is None:
        return "–"
    return "{} % ({} to {})".format(*(round(100 * x) for x in ends(numbers, SHARES)))


def test_the_table_of_effects_is_recomputed(results, methods):
    table = verdict_tables.effects_table(methods)
    assert table.columns[2:] == ("Accuracy (points)", "Share of it", "Calibrated (nats)", "Share of it")
    expected_rows = []
    for label, keys in KEYS.items():
        by_outcome = {outcome: recomputed.effects(results, keys, outcome) for outcome in UNITS}
        names = [name for name in by_outcome["accuracy"] if name != "gain"]
        for name in names:
            texts = [t for o, effects in by_outcome.items() for t in (change(effects[name], o), share(effects[name]))]
            expected_rows.append([label, name, *texts])
        gains = [text for outcome, effects in by_outcome.items() for text in (change(effects["gain"], outcome), "–")]
        expected_rows.append([label, "all", *gains])
    assert [[row[0], row[1].split(":")[0], *row[2:]] for row in table.rows] == expected_rows


def test_the_table_of_corners_is_recomputed(results, methods):
    """IVLP has three effects and bias tuning two: a letter of each says which run it is from."""
    streams = {"IVLP, 2 seeds": ("PRR", "RPP", "PPP"), "Bias tuning": ("PR", "RP", "PP")}
    expected_rows = []
    for label, keys in KEYS.items():
        for stream in streams[label]:
            mixtures = {outcome: recomputed.mixture(results, keys, outcome, stream) for outcome in UNITS}
            texts = [text for outcome, each in mixtures.items() for text in (change(each, outcome), share(each))]
            expected_rows.append([label, *texts])
    rows = verdict_tables.corners_table(methods).rows
    assert [[row[0], *row[2:]] for row in rows] == expected_rows
    assert [row[1].split(",")[0] for row in rows[:3]] == ["attention alone", "tokens alone", "all: the gain"]


def test_the_table_of_levels_is_recomputed(results, methods):
    expected_rows = []
    for label, keys in KEYS.items():
        for tower in ("vision", "text"):
            by_outcome = {outcome: recomputed.level_steps(results, keys, outcome, tower) for outcome in UNITS}
            for step in by_outcome["accuracy"][0]:
                texts = []
                for outcome, (steps, shapley) in by_outcome.items():
                    texts += [change(steps[step], outcome), share(steps[step]) if step != "all" else "–"]
                    texts.append(change(shapley[step], outcome) if step in shapley else "–")
                expected_rows.append([label, *texts])
    rows = verdict_tables.levels_table(methods).rows
    assert [[row[0], *row[2:]] for row in rows] == expected_rows
    words = [row[1].split(": ")[1] for row in rows[:7]]
    assert words[0] == "the mean over training images" and words[4:6] == ["the best constant", "the mean over classes"]


def test_the_table_of_temperatures_is_recomputed(results, methods):
    expected_rows = []
    for label, keys in KEYS.items():
        alone = recomputed.temperature_alone(results, keys)
        summaries = [results.factorial.models[key].summary for key in keys]
        ends_of_runs = [[list(summary.temperatures.values())[place] for summary in summaries] for place in (0, -1)]
        temperatures = [f"{np.exp(np.mean(np.log(of_seeds))):.2f}" for of_seeds in ends_of_runs]
        refitted = "yes" if all(summary.refitted for summary in summaries) else "no"
        nats = change(alone, "calibrated").replace(" (", " nats (")
        expected_rows.append([label, nats, share(alone), *temperatures, refitted])
    table = verdict_tables.temperature_table(methods)
    assert list(map(list, table.rows)) == expected_rows
    assert table.columns[0] == "Model" and len(table.columns) == len(expected_rows[0])


def test_a_sentence_says_how_much_of_what_is_added_is_a_constant(results, methods):
    sentences = methods[0].verdict.sentences
    for tower, tokens in (("vision", "image"), ("text", "text")):
        (sentence,) = (each for each in sentences if each.startswith(f"Of what it adds to {tokens} tokens"))
        for outcome in UNITS:
            constant = recomputed.level_steps(results, KEYS["IVLP, 2 seeds"], outcome, tower)[0]["constant"]
            if constant["share"] is None:  # nothing sure is added in this outcome
                assert OUTCOME_NAMES[outcome] not in sentence
                continue
            side = (
                "the mean has less than"
                if constant["share_high"] < 0.5
                else "it is undecided whether the mean has more than"
            )
            assert f"{share(constant)} in {OUTCOME_NAMES[outcome]}" in sentence
            outcomes = rf"in {OUTCOME_NAMES[outcome]}( and in [^:]+?)?"
            assert re.search(rf"[:d] {outcomes} {side} half", sentence)
    # Bias tuning learns a constant, of which that is no finding.
    assert not any("Of what it adds" in sentence for sentence in methods[1].verdict.sentences)


def test_the_table_of_constants_is_recomputed(results, methods):
    table = verdict_tables.constants_table(methods)
    by_outcome = {outcome: recomputed.constants(results, KEYS["IVLP, 2 seeds"], outcome) for outcome in UNITS}
    for row, name in zip(table.rows, NAMES, strict=True):
        assert row[0] == "IVLP, 2 seeds"
        assert list(row[3:]) == [share(by_outcome[o][f"{kind}:{name}"]) for o in UNITS for kind in ("kept", "lost")]
    assert table.rows[1][2] == "192" and table.rows[-1][1] == "control: another dataset's"


def without_gain(numbers):
    loss = Estimate(-1.0, -2.0, -0.5)  # a sure loss has shares in the results
    return ByOutcome(*(dataclasses.replace(outcome, gain=loss) for outcome in (numbers.accuracy, numbers.calibrated)))


def test_of_what_is_no_sure_gain_nothing_is_shared_out():
    results = synthetic_results(pictures=1)
    test = results.factorial.models["ivlp"]
    constants = results.constants.models["ivlp"]
    towers = test.summary.towers | {"both": without_gain(test.summary.towers["both"])}
    summary = dataclasses.replace(test.summary, towers=towers)
    results.factorial.models["ivlp"] = dataclasses.replace(test, summary=summary)
    results.constants.models["ivlp"] = dataclasses.replace(constants, summary=without_gain(constants.summary))
    methods = study_methods(conclude_study(results))
    rows = [row for row in verdict_tables.effects_table(methods).rows if row[0] == "IVLP"]
    assert {row[3] for row in rows} == {row[5] for row in rows} == {"–"}
    assert {text for row in verdict_tables.constants_table(methods).rows for text in row[3:]} == {"–"}
    assert "speaks" not in " ".join(methods[0].verdict.sentences)


def test_what_is_missing_says_why():
    results = synthetic_results(pictures=1)
    results.factorial.models["ivlp"] = Missing("Its texts depend on the image.")
    results.constants.models["ivlp"] = Missing("There are no training images.")
    study = conclude_study(results)
    methods = study_methods(study)
    assert verdict_tables.why_no_effects(methods) == ["IVLP: Its texts depend on the image."]
    assert verdict_tables.why_no_constants(study, methods) == [
        "IVLP: There are no training images.",
        "Bias tuning: It learns such a constant, so what that keeps is no finding.",
    ]
    bare = only_sections(study, "factorial", "verdict")
    sentences = verdict_tables.why_no_constants(bare, study_methods(bare))
    assert sentences[0].endswith("measured; --config.sections=constants has it.")
    assert verdict_tables.constants_table(methods) is None
    assert {row[0] for row in verdict_tables.effects_table(methods).rows} == {"Bias tuning"}


def test_without_a_verdict_there_is_nothing_to_draw(results):
    study = only_sections(results)
    methods = study_methods(study)
    assert verdict_figures.effects_figure(methods) is None and verdict_tables.effects_table(methods) is None
    assert verdict_tables.temperature_table(methods) is None and verdict_tables.why_no_constants(study, methods) == []
