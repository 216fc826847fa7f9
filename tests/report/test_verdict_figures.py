"""What the verdict's figures and tables show is what the images' outcomes give, computed anew."""

import copy

import numpy as np
import pytest

from clipbias.explain.verdict import verdicts
from clipbias.report import style, verdict_figures, verdict_tables
from clipbias.report.study_results import StudyResults
from tests.report import recomputed
from tests.report.synthetic import synthetic_results

NUMBER = ("value", "low", "high", "share", "share_low", "share_high")
UNITS = {"log_likelihood": "nats", "accuracy": "points"}
DIGITS = {"log_likelihood": 3, "accuracy": 1}
LABELS = {"ivlp": "IVLP", "bias": "Bias tuning"}


@pytest.fixture(scope="module")
def results():
    return synthetic_results()


@pytest.fixture(scope="module")
def study(results):
    return StudyResults(results)


@pytest.fixture(scope="module")
def effects(study):
    return verdict_figures.effects_figure(study)


@pytest.fixture(scope="module")
def kept(study):
    return verdict_figures.kept_figure(study)


def again(results):
    """The study with its verdict drawn from the arrays as they are now."""
    results.scalars["verdict"], results.scalars["agreement"] = verdicts(results)
    return StudyResults(results)


def as_mappings(drawing):
    frame = drawing.numbers.astype(object)
    return frame.where(frame.notna(), None).to_dict("records")


def assert_same(row, expected):
    for name in NUMBER:
        wanted = expected.get(name)
        assert (row[name] is None) == (wanted is None), name
        if wanted is not None:
            assert row[name] == pytest.approx(wanted, rel=1e-9, abs=1e-9), name


def test_every_number_of_the_waterfalls_is_recomputed(results, effects):
    rows = as_mappings(effects)
    for row in rows:
        if row["effect"] == "random":
            key, name = f"{row['model']}:random", "gain"
        else:
            key, name = row["model"], row["effect"]
        assert_same(row, recomputed.effects(results, key, row["outcome"], row["tower"])[name])
    # Two outcomes and three towers: reference, gain and three effects of prompts, or two without; and the control.
    assert len(rows) == 2 * 3 * (5 + 4) + 2


def panels(drawing):
    """A figure's panels by model and outcome."""
    outcomes = ("log_likelihood", "accuracy")
    grid = np.reshape(drawing.figure.axes, (-1, 2))
    assert [axes.get_title(loc="left") for axes in grid[0]] == ["Log-likelihood (nats)", "Accuracy (points)"]
    return {(row[0].get_ylabel(), outcome): axes for row in grid for outcome, axes in zip(outcomes, row, strict=True)}


def whiskers(axes):
    """The ends of all whiskers, in the order of their bars."""
    bars = [bar for container in axes.containers for bar in getattr(container, "lines", ((), (), ()))[2]]
    return [tuple(segment[:, 0]) for lines in bars for segment in lines.get_segments()]


def signed(number, outcome):
    return f"{number['value']:+.{ {'log_likelihood': 2, 'accuracy': 1}[outcome] }f}".replace("-", "−")


def said(axes):
    return [text.get_text() for text in axes.texts if text.get_text() and text.get_gid() is None]


def test_bars_and_whiskers_stand_in_the_panel_that_names_them(results, effects):
    found = panels(effects)
    assert len(found) == 4
    for (label, outcome), axes in found.items():
        key = {label: key for key, label in LABELS.items()}[label]
        wanted, texts = [], []
        for tower in ("both", "vision", "text"):
            numbers = recomputed.effects(results, key, outcome, tower)
            names = [name for name in ("attention", "scale", "values") if name in numbers]
            shown = [numbers[name] for name in (*names, "gain")]
            if key == "ivlp" and tower == "both":
                shown.append(recomputed.effects(results, "ivlp:random", outcome, "both")["gain"])
            wanted += shown
            texts += [signed(number, outcome) for number in shown] if tower == "both" else []
        ticks = [*names, "all"] + ["random"] * (key == "ivlp")
        assert [text.get_text() for text in axes.get_yticklabels()] == ticks
        low, high = axes.get_xlim()
        cut = np.clip([number["value"] for number in wanted], low, high)
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], cut, atol=1e-9)
        breaks = [text for text in axes.texts if text.get_gid() == "break"]
        assert len(breaks) == sum(not low <= number["value"] <= high for number in wanted)
        ends = [np.clip((n["low"], n["high"]), low, high) for n in wanted if low <= n["value"] <= high]
        np.testing.assert_allclose(whiskers(axes), ends, atol=1e-9)
        assert said(axes) == texts


def change(number, outcome):
    value, low, high = (f"{round(number[name], DIGITS[outcome]) + 0.0:+.{DIGITS[outcome]}f}" for name in NUMBER[:3])
    return f"{value} ({low} to {high})"


def share(number):
    if number["share"] is None:
        return "–"
    return "{} % ({} to {})".format(*(round(100 * number[name]) for name in NUMBER[3:]))


def texts(table):
    return [[*row] for row in table.rows]


def test_the_table_of_effects_is_recomputed(results, study):
    table = verdict_tables.effects_table(study)
    assert table.columns[2:] == ("Share of the gain", "Log-likelihood (nats)", "Accuracy (points)")
    wanted = []
    for key, label in LABELS.items():
        nats, points = (recomputed.effects(results, key, outcome, "both") for outcome in UNITS)
        for name in ("attention", "scale", "values"):
            if name in nats:
                changes = (change(nats[name], "log_likelihood"), change(points[name], "accuracy"))
                wanted.append([label, name, share(nats[name]), *changes])
        changes = (change(nats["gain"], "log_likelihood"), change(points["gain"], "accuracy"))
        wanted.append([label, "all", "100 %", *changes])
    assert [[row[0], row[1].split(":")[0], *row[2:]] for row in texts(table)] == wanted
    assert "gain in the log-likelihood of the true class for IVLP, Bias tuning" in table.caption


def test_every_number_of_what_is_kept_is_recomputed(results, kept):
    rows = as_mappings(kept)
    for row in rows:
        assert row["model"] == "ivlp"  # a learned bias is its own constant
        if row["form"].endswith(", learned"):
            assert row["form"] == "Bias tuning, learned"
            assert_same(row, recomputed.effects(results, "bias", row["outcome"], "both")["gain"])
        else:
            assert_same(row, recomputed.kept(results, row["model"], row["outcome"])[row["form"]])
    assert len(rows) == 2 * (4 + 1)


def test_bars_of_constants_stand_in_the_panel_that_names_them(results, kept):
    found = panels(kept)
    assert list(found) == [("IVLP", "log_likelihood"), ("IVLP", "accuracy")]
    for (_, outcome), axes in found.items():
        numbers = recomputed.kept(results, "ivlp", outcome)
        wanted = [numbers[name] for name in ("vector", "kind", "token", "tuned")]
        wanted.append(recomputed.effects(results, "bias", outcome, "both")["gain"])
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [n["value"] for n in wanted], atol=1e-9)
        np.testing.assert_allclose(whiskers(axes), [(n["low"], n["high"]) for n in wanted], atol=1e-9)
        texts = [signed(number, outcome) for number in wanted]
        for place, name in enumerate(("vector", "kind", "token")):
            texts[place] += f"  {100 * numbers[name]['share']:.0f} %"
        assert said(axes) == texts


def test_the_table_of_what_is_kept_is_recomputed(results, study):
    table = verdict_tables.kept_table(study)
    starts = {"vector": "one vector per layer", "kind": "two vectors", "token": "one vector per layer and token"}
    rows = iter(texts(table))
    for key, label in LABELS.items():
        numbers = {outcome: recomputed.kept(results, key, outcome) for outcome in UNITS}
        for form, start in starts.items() if key == "ivlp" else ():
            row = next(rows)
            assert row[0] == label and row[1].startswith(start)
            assert row[2:] == [
                text
                for outcome in UNITS
                for text in (share(numbers[outcome][form]), change(numbers[outcome][form], outcome))
            ]
        own = [change(numbers[outcome]["tuned"], outcome) for outcome in UNITS]
        assert next(rows) == [label, f"{label} itself", "–", own[0], "–", own[1]]
        if key == "ivlp":
            gains = [change(recomputed.effects(results, "bias", each, "both")["gain"], each) for each in UNITS]
            assert next(rows) == ["IVLP", "Bias tuning, learned", "–", gains[0], "–", gains[1]]
    assert next(rows, None) is None


def test_without_a_gain_nothing_is_shared_out():
    results = synthetic_results()
    for name in ("log_likelihood", "correct"):
        array = results.arrays[f"factorial/ivlp/{name}"]
        array[:, :, 7] = array[::-1, :, 0]  # the same outcomes, of other images
    rows = texts(verdict_tables.effects_table(again(results)))
    assert [row[2] for row in rows if row[0] == "IVLP"] == ["–"] * 4
    assert [row[2] for row in rows if row[0] == "Bias tuning"][-1] == "100 %"


def test_of_a_loss_nothing_is_kept():
    results = synthetic_results()
    results.arrays["amounts/ivlp/log_likelihood"] = -results.arrays["amounts/ivlp/log_likelihood"]
    study = again(results)
    assert study.scalars["verdict"]["ivlp"]["kept"]["log_likelihood"]["vector"]["share"] > 0
    rows = [row for row in texts(verdict_tables.kept_table(study)) if row[0] == "IVLP"]
    assert [row[2] for row in rows] == ["–"] * 5 and rows[0][4] != "–"
    axes = verdict_figures.kept_figure(study).figure.axes[0]
    assert not [text for text in said(axes) if "%" in text]


def test_a_method_of_one_tower_has_no_panels_for_the_other():
    results = synthetic_results()
    for key in ("ivlp", "ivlp:random"):
        results.scalars["factorial"][key]["towers"] = ["both"]
        for name in ("log_likelihood", "correct", "margin"):
            results.arrays[f"factorial/{key}/{name}"] = results.arrays[f"factorial/{key}/{name}"][:, :1]
    drawing = verdict_figures.effects_figure(again(results))
    assert len(panels(drawing)["IVLP", "accuracy"].patches) == 5
    assert {row["tower"] for row in as_mappings(drawing) if row["model"] == "ivlp"} == {"both"}


def test_what_is_missing_says_why():
    results = synthetic_results()
    results.scalars["factorial"]["ivlp"] = {"missing": "Its texts depend on the image."}
    results.scalars["amounts"]["ivlp"] = {"missing": "There are no training images."}
    del results.scalars["amounts"]["bias"]
    study = again(results)
    assert verdict_tables.why_no_effects(study) == ["IVLP: Its texts depend on the image."]
    assert verdict_tables.why_nothing_kept(study) == [
        "IVLP: There are no training images.",
        "Bias tuning: No constant was measured.",
    ]
    results.scalars["sections"] = ["factorial", "verdict"]
    assert verdict_tables.why_nothing_kept(study)[1].endswith("measured; --config.sections=amounts has it.")
    assert verdict_figures.kept_figure(study) is None and verdict_tables.kept_table(study) is None
    assert {row[0] for row in texts(verdict_tables.effects_table(study))} == {"Bias tuning"}


def test_without_a_verdict_there_is_nothing_to_draw(results):
    bare = copy.copy(results)
    bare.scalars = {name: value for name, value in results.scalars.items() if name != "verdict"}
    study = StudyResults(bare)
    assert verdict_figures.effects_figure(study) is None and verdict_tables.effects_table(study) is None
    assert verdict_figures.kept_figure(study) is None and verdict_tables.why_nothing_kept(study) == []


def test_a_model_that_changes_no_image_is_drawn_beside_its_control(results):
    own = copy.deepcopy(results)
    own.arrays["factorial/ivlp/correct"][:] = own.arrays["factorial/ivlp/correct"][:, :1, :1]
    drawing = verdict_figures.effects_figure(again(own))
    rows = [row for row in as_mappings(drawing) if (row["model"], row["outcome"]) == ("ivlp", "accuracy")]
    assert {row["effect"] == "random": bool(row["value"]) for row in rows if row["effect"] != "reference"} == {
        False: False,
        True: True,
    }


def test_captions_tell_images_and_controls(effects, kept):
    assert "95 % bootstrap intervals over images" in effects.caption and "50 images" in effects.caption
    assert "trained ones' norms" in effects.caption and "training images" in kept.caption
    for drawing in (effects, kept):
        with style.styled():
            drawing.figure.canvas.draw()
        assert np.ptp(np.asarray(drawing.figure.canvas.buffer_rgba())) > 0
