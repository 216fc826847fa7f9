"""The verdict and the replacements as tables, pictures and files, recomputed from the images' outcomes."""

import dataclasses
import operator
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.analysis.causal_section import MEANS_OF_GROUPS
from clipbias.analysis.replacement import Origin, ReplacementResults
from clipbias.analysis.results import VerdictLabels, What, Where
from clipbias.analysis.results_file import save_results
from clipbias.analysis.verdict import judge
from clipbias.analysis.verdict_sentences import sentence
from clipbias.errors import ClipbiasError
from clipbias.report.study_page import load_studies
from clipbias.report.verdict import (
    COLUMNS,
    facts,
    overview_figure,
    reading_figure,
    replacement_figure,
    replacement_message,
    replacement_table,
    seed_table,
    verdict_frame,
    verdict_table,
)
from tests.report.synthetic import model_replacements, only_sections, replaced_method, synthetic_results
from tools import draw_studies

SCALES = {"log_likelihood": ("log_likelihood", 1.0), "accuracy": ("correct", 100.0)}
ENDS = ("value", "low", "high")
SHARES = ("share", "share_low", "share_high")
# By quantity of a verdict: the field with its interval, two ways, the second less the first, and the quantity that it
# is a share of.
PAIRS = {
    "gain": ("gain", "reference", "tuned", None),
    "attention alone": ("attention", "reference", "attention alone", "gain"),
    "tokens alone": ("tokens", "reference", "tokens alone", "gain"),
    "all that is added": ("image.all", "image tokens: nothing", "tuned", "gain"),
    "another image's": ("image.other", "image tokens: nothing", "image tokens: another image's", "all that is added"),
    "mean of all images": (
        lambda numbers: numbers.image.means["all images"],
        *("image tokens: nothing", "image tokens: mean of all images", "all that is added"),
    ),
    "mean of its class": (
        lambda numbers: numbers.image.means["zero-shot's class"],
        *("image tokens: nothing", "image tokens: mean of zero-shot's class", "all that is added"),
    ),
    "exchange": ("image.exchange", "image tokens: another image's", "tuned", "all that is added"),
    "explained by the class": (
        lambda numbers: numbers.image.explained["zero-shot's class"],
        *("image tokens: another image's", "image tokens: mean of zero-shot's class", "exchange"),
    ),
}


def quantities_of(results, keys, outcome):
    """By quantity its numbers of a method's models: values and shares from the images' outcomes, and stored ends."""
    name, unit = SCALES[outcome]
    tests = [results.sections["causal"].models[key] for key in keys]
    stored = results.sections["causal"].of(tuple(keys))[outcome]

    def of_way(way):
        at = [k for k, each in enumerate(tests[0].ways) if each == way]
        return unit * np.mean([np.asarray(getattr(test.outcomes, name), np.float64)[:, at] for test in tests])

    numbers = {}
    for quantity, (field, before, after, whole) in PAIRS.items():
        number = field(stored) if callable(field) else operator.attrgetter(field)(stored)
        value = of_way(after) - of_way(before)
        numbers[quantity] = {"value": value, "low": number.low, "high": number.high}
        if number.share:
            share = value / numbers[whole]["value"]
            numbers[quantity] |= {"share": share, "share_low": number.share.low, "share_high": number.share.high}
    return numbers


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
        (method, outcome, name): quantities_of(
            each, [key for key in keys if key in each.sections["causal"].models], outcome
        )
        for name, each in results.items()
        for method, keys in KEYS.items()
        for outcome in ("accuracy", "log_likelihood")
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
    labels = frame.set_index(["dataset", "method"])["what"]
    assert set(labels.loc[("dtd", "Bias tuning")]) == {"the same for every image"}


def test_the_table_has_both_outcomes_of_every_method(results, numbers):
    study = results["demo/fashion"]
    table = verdict_table(study, study.methods)
    assert list(table.columns) == [*COLUMNS]
    units = [("IVLP", "accuracy"), ("IVLP", "log_likelihood"), ("Bias tuning", "accuracy")]
    units.append(("Bias tuning", "log_likelihood"))
    for row, (method, outcome) in zip(table.body, units, strict=True):
        assert row[0].startswith(method) and row[1] == ("points" if outcome == "accuracy" else "nats, %")
        for text, quantity in zip(row[2:-2], PAIRS, strict=True):
            of_quantity = numbers[method, outcome, "demo/fashion"][quantity]
            if outcome == "accuracy" or quantity == "gain":
                digits = 1 if outcome == "accuracy" else 3
                middle, low, high = (f"{round(of_quantity[end], digits) + 0.0:+.{digits}f}" for end in ENDS)
                assert text == f"{middle} ({low} to {high})"
            elif "share" in of_quantity:
                middle, low, high = (round(100 * of_quantity[end]) for end in SHARES)
                assert text == f"{middle} % ({low} to {high})"
            else:
                assert text == "–"
    second = seed_table(study).body[3]
    alone = quantities_of(study, ["ivlp_seed2"], "log_likelihood")["gain"]["value"]
    assert second[0] == "IVLP (seed 2)" and second[2].startswith(f"{alone:+.3f}")


def test_the_table_has_two_vectors_beside_their_ceiling(results):
    """The same changed predictions in the first row, the share of the gain below; dashes where nothing was fitted."""
    study = results["demo/fashion"]
    table = verdict_table(study, study.methods)
    by_image = study.sections["replacement"].models["ivlp"].by_image
    plain, tuned, *others = by_image.decisions.T
    gains = by_image.log_likelihood.mean(0)
    (method,) = study.sections["replacement"].methods
    ivlp, ivlp_below, *bias = (row[-2:] for row in table.body)
    assert bias == [["–", "–"]] * 2
    for place, kind in enumerate((Origin.FITTED, Origin.CEILING)):
        (k,) = [k for k, each in enumerate(by_image.students) if each.kind is kind]
        (row,) = [row for row in method.rows if row.student.kind is kind]
        moved = 100 * np.mean(others[k][plain != tuned] == tuned[plain != tuned])
        share = 100 * (gains[2 + k] - gains[0]) / (gains[1] - gains[0])
        for text, value, number in ((ivlp[place], moved, row.moved), (ivlp_below[place], share, row.share)):
            assert text == f"{value:.0f} % ({100 * number.low:.0f} to {100 * number.high:.0f})"
    without = dataclasses.replace(study, sections={**study.sections, "replacement": None})
    assert verdict_table(without, study.methods).columns == list(COLUMNS[:-2])


def test_the_table_says_how_each_fit_ended(results):
    study = results["demo/fashion"]
    (method,) = study.sections["replacement"].methods
    ends = [(1240, True), (600, False), (None, None)]
    rows = [
        dataclasses.replace(row, student=dataclasses.replace(row.student, steps=steps, plateau=plateau))
        for row, (steps, plateau) in zip(method.rows, ends, strict=False)
    ]
    fitted = ReplacementResults({}, (dataclasses.replace(method, rows=tuple(rows)),))
    table = replacement_table(dataclasses.replace(study, sections={**study.sections, "replacement": fitted}))
    assert [row[table.columns.index("Steps")] for row in table.body] == ["1,240", "600 (bound)", "–"]


def marks(containers):
    """The middle of every mark by its place on the y axis, with the ends of its line."""
    made = {}
    for container in containers:
        line, _, (bars,) = container.lines
        for x, y, ends in zip(line.get_xdata(), line.get_ydata(), bars.get_segments(), strict=True):
            made[round(float(y), 2)] = (float(x), *ends[:, 0])
    return made


def test_what_is_drawn_is_the_file(results, numbers, studies):
    """Each mark in the panel of its dataset."""
    drawing = overview_figure(studies)
    pd.testing.assert_frame_equal(drawing.numbers, verdict_frame(studies))
    panels = drawing.figure.axes[:3]
    assert [axes.get_title(loc="left") for axes in panels] == ["ImageNet", "DTD", "demo/fashion"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == list(KEYS)
    for axes, name in zip(panels, DATASETS, strict=True):
        shown = marks(axes.containers)
        for place, method in enumerate(KEYS):
            for step, quantity in enumerate(list(PAIRS)[1:]):
                of_quantity = numbers[method, "log_likelihood", name][quantity]
                if "share" not in of_quantity:
                    continue
                middle = shown[round(place + 0.12 * (step - 3.5), 2)]
                assert middle == pytest.approx([100 * of_quantity[end] for end in SHARES], abs=0.1)


def test_bars_of_the_first_page_are_the_file(results, numbers):
    """Each bar ends at its share, and its line at the interval's ends; numbers are recomputed from outcomes."""
    study = results["demo/fashion"]
    names = ["attention alone", "tokens alone", "another image's", "mean of all images", "mean of its class"]
    (fitted,) = study.sections["replacement"].methods
    moved = {row.student.kind: row.moved.value for row in fitted.rows}
    ends = [f"{100 * moved[kind]:.0f}" for kind in (Origin.FITTED, Origin.CEILING)]
    for method, of_method in zip(study.methods, ("IVLP", "Bias tuning"), strict=True):
        bars = facts(study, method)
        for bar, name in zip(bars, names, strict=False):
            of_quantity = numbers[of_method, "log_likelihood", "demo/fashion"][name]
            value, low, high = (100 * of_quantity[end] for end in SHARES)
            assert bar.text == f"{round(value) + 0} % ({round(low) + 0} to {round(high) + 0})"
            left, right = bar.spans["ends"]
            assert 2 * left - 50 == pytest.approx(max(low, -50), abs=0.1)
            assert 150 - 2 * right == pytest.approx(min(high, 150), abs=0.1)
            left, right = bar.spans["value"]
            assert (2 * left - 50, 150 - 2 * right) == pytest.approx((min(value, 0), max(value, 0)), abs=0.1)
        # Nothing was fitted to bias tuning.
        assert [bar.text.partition(" ")[0] for bar in bars[5:]] == (ends if of_method == "IVLP" else [])


def test_the_reading_curve_is_of_the_images_outcomes(results):
    """Each step as a share of all that is added, and its points; also where zero-shot is right or wrong."""
    study = results["dtd"]
    drawing = reading_figure([study])
    frame = drawing.numbers
    test = study.sections["causal"].models["ivlp"]
    right = np.asarray(test.outcomes.zero_shot_right, bool)
    shown = frame[frame["method"] == "IVLP"]
    ways = {"another image's": "image tokens: another image's"}
    ways |= {step: way.value for step, way in MEANS_OF_GROUPS.items()}
    assert list(shown["step"].unique()) == list(ways)
    groups = {"all": np.ones(len(right), bool), "right": right, "wrong": ~right}
    assert set(shown["among"]) == {name for name, among in groups.items() if among.sum() >= 20}
    for _, row in shown.iterrows():
        among = groups[row["among"]]

        def of_way(way, values, among=among):
            places = [k for k, each in enumerate(test.ways) if each == way]
            return np.float64(values)[among][:, places].mean()

        way = ways[row["step"]]
        nats, correct = test.outcomes.log_likelihood, test.outcomes.correct
        nothing = of_way("image tokens: nothing", nats)
        share = (of_way(way, nats) - nothing) / (of_way("tuned", nats) - nothing)
        assert row["value"] == pytest.approx(100 * share, abs=1e-3)
        points = 100 * (of_way(way, correct) - of_way("image tokens: nothing", correct))
        assert row["points"] == pytest.approx(points, abs=1e-6)
        assert row["low"] < row["value"] < row["high"]
    line = next(each for each in drawing.figure.axes[0].get_lines() if len(each.get_xdata()) == len(ways))
    np.testing.assert_allclose(np.float64(line.get_ydata()), shown[shown["among"] == "all"]["value"])
    assert reading_figure([dataclasses.replace(study, methods=())]) is None


def test_a_study_without_a_sure_gain_has_no_picture(results):
    causal = results["dtd"].sections["causal"]
    unsure = {}
    for key, each in causal.numbers.items():
        numbers = each.log_likelihood
        parts = {name: dataclasses.replace(getattr(numbers, name), share=None) for name in ("attention", "tokens")}
        no_gain = dataclasses.replace(numbers, gain=dataclasses.replace(numbers.gain, low=-1.0), image=None, **parts)
        unsure[key] = dataclasses.replace(each, log_likelihood=no_gain)
    sections = {**results["dtd"].sections, "causal": dataclasses.replace(causal, numbers=unsure), "replacement": None}
    study = judge(dataclasses.replace(results["dtd"], sections=sections))
    assert facts(study, study.methods[0]) == [] and overview_figure([study]) is None
    assert all(method.labels.where is Where.NO_GAIN for method in study.methods)
    rows = verdict_table(study, study.methods).body
    assert {text for row in rows[1::2] for text in row[3:]} == {"–"}


@pytest.mark.ci
def test_the_command_draws_studies_and_prints_their_sentences(results, tmp_path, capsys, monkeypatch):
    for place, name in enumerate(("imagenet", "dtd")):
        save_results(tmp_path / "why" / f"study{place}", results[name])
    for name, value in {"TO": str(tmp_path / "images"), "SUFFIX": "_two", "METHODS": []}.items():
        monkeypatch.setattr(draw_studies, name, types.SimpleNamespace(value=value))
    assert draw_studies.main([str(tmp_path / "why")]) == 0
    printed = capsys.readouterr().out
    for name in ("imagenet", "dtd"):
        for method in (*results[name].methods, *results[name].sections["replacement"].methods):
            assert method.sentence in printed
    for name, lines in {"verdict_two": 2 * 2 * 2 * len(PAIRS), "replacements_two": 2 * 5}.items():
        assert (tmp_path / "images" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert len(pd.read_csv(tmp_path / "images" / f"{name}.csv")) == lines
    save_results(tmp_path / "plain", only_sections(results["dtd"]))
    with pytest.raises(ClipbiasError, match="neither verdicts nor replacements"):
        draw_studies.main([str(tmp_path / "plain")])


def test_methods_that_were_studied_apart_stand_together(results, tmp_path):
    first = results["dtd"]
    models = tuple(
        dataclasses.replace(each, name=f"Other {each.name}", label=f"Other {each.label}") for each in first.models
    )
    second = judge(dataclasses.replace(first, models=models))
    for name, study in (("first", first), ("elsewhere", results["imagenet"]), ("second", second)):
        save_results(tmp_path / name, study)
    studies = load_studies([tmp_path / name for name in ("first", "elsewhere", "second")])
    assert [path.name for path in studies] == ["elsewhere", "first", "second"]
    frame = verdict_frame(list(studies.values()))
    methods = {"IVLP", "Bias tuning", "Other IVLP", "Other Bias tuning"}
    assert set(frame.loc[frame["dataset"] == "dtd", "method"]) == methods
    save_results(tmp_path / "again", first)
    with pytest.raises(ClipbiasError, match="both hold IVLP on dtd"):
        load_studies([tmp_path / "first", tmp_path / "again"])


def test_where_hardly_anything_is_added_nothing_is_shared_out(results):
    (ivlp, _) = results["dtd"].methods
    labels = VerdictLabels(Where.ATTENTION, What.NOTHING)
    row = verdict_table(results["dtd"], [dataclasses.replace(ivlp, labels=labels)]).body[1]
    assert row[COLUMNS.index("All added")] != "–" and set(row[COLUMNS.index("All added") + 1 : -2]) == {"–"}
    assert "another image" not in sentence(dataclasses.replace(ivlp, labels=labels), "dtd", fewest_images=20)


PLACES = ("demo/digits", "demo/fashion")
LABELS = {
    "the method itself, fitted (ceiling)": Origin.CEILING,
    "two vectors, fitted": Origin.FITTED,
    "two vectors, on labels": Origin.LABELS,
    "two vectors, the mean": Origin.MEAN,
}


@pytest.fixture(scope="module")
def exchanged():
    """Of two datasets: two seeds of IVLP and one of VPT."""
    made = []
    for number, dataset in enumerate(PLACES):
        ivlp = {f"ivlp_{seed}": model_replacements(10 * number + seed) for seed in (1, 2)}
        vpt = {"vpt": model_replacements(10 * number + 5)}
        methods = (replaced_method(ivlp), replaced_method(vpt, "VPT"))
        study = only_sections(synthetic_results(pictures=1, dataset=dataset), "replacement")
        study.sections["replacement"] = ReplacementResults(ivlp | vpt, methods)
        made.append(study)
    return made


def test_the_numbers_are_the_comparisons_and_the_picture_is_the_numbers(exchanged):
    figure = replacement_figure(exchanged)
    numbers = figure.numbers
    assert len(numbers) == 2 * 2 * 5 and list(numbers["dataset"].unique()) == list(PLACES)
    for study in exchanged:
        for method in study.sections["replacement"].methods:
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
        figure.figure.axes, [(start, dataset) for start in ("", "moved_") for dataset in PLACES], strict=True
    ):
        for container in axes.containers:
            kind = LABELS[container.get_label()]
            rows = numbers[(numbers["dataset"] == dataset) & (numbers["kind"] == kind)]
            shown = marks([container])
            assert [round(y) for y in shown] == [0, 1]  # a place for each method
            np.testing.assert_allclose([*shown.values()], rows[[f"{start}{end}" for end in ENDS]])
            drawn += 1
    assert drawn == 2 * 2 * 4


def test_the_message_has_the_gaps_of_all_datasets(exchanged):
    numbers = replacement_figure(exchanged).numbers.query("method == 'IVLP'")
    drawn = numbers[(numbers["form"] == "kind") | (numbers["kind"] == Origin.CEILING)]
    gaps = [-100 * study.sections["replacement"].methods[0].rows[1].less_ceiling.value for study in exchanged]
    low, high = sorted(round(gap) for gap in gaps)
    assert low < high and f"make {low} to {high} fewer" in replacement_message(drawn)
    above = drawn.assign(less_ceiling_value=[25.0, *[np.nan] * (len(drawn) - 1)])
    assert "make 25 more than" in replacement_message(above)
    assert f"make from {low} fewer to 25 more" in replacement_message(above.fillna({"less_ceiling_value": -low}))
    without = drawn.assign(less_ceiling_value=np.nan)
    assert replacement_message(without).startswith("The share of changed predictions is too uncertain")
    assert "no ceiling" in replacement_message(without[without["kind"] != "ceiling"])
    assert replacement_message(drawn.assign(moved_value=np.nan)) == "No prediction changed."
    with pytest.raises(ClipbiasError, match="nothing was fitted to 'CoOp'; there are IVLP, VPT"):
        replacement_figure(exchanged, ["CoOp"])
    assert replacement_figure([dataclasses.replace(exchanged[0], sections={})]) is None
