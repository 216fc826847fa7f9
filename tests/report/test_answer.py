"""A report's first page: numbers against plain loops over a study's arrays, and sentences that follow."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from clipbias.explain.answer import approach, conclude_study
from clipbias.explain.headline import MethodTest, headline, method_tests
from clipbias.explain.reasons import reasons
from clipbias.explain.results import CausalTests, Effects, Kind, MethodResult, Missing, Replacements
from clipbias.explain.uncertainty import Estimate
from clipbias.explain.wording import NOTHING_INSIDE
from clipbias.report.answer_figure import COLUMNS, MOST_ROWS, answer_figure, answer_note, answer_rows
from clipbias.report.methods import MethodResults, study_methods
from tests.report import recomputed
from tests.report.recomputed import SHARES, drawn, ends, number
from tests.report.synthetic import only_sections, synthetic_results

MARKS = ("gain", "attention alone", "tokens alone", "all that is added", "mean of what is added", "best constant")
KEYS = {"IVLP, 2 seeds": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1, twins=True)


def marks(results, label, keys):
    """What the first page shows of a method; that a learned bias is its own mean is no finding."""
    numbers = recomputed.effects(results, keys, "accuracy") | recomputed.alone(results, keys, "accuracy")
    numbers |= {} if label == "Bias tuning" else recomputed.added(results, keys, "accuracy")
    return {name: numbers[name] for name in MARKS if name in numbers}


def numbers_in(text):
    return [float(part) for part in re.findall(r"[+-]?\d+(?:\.\d+)?", text)]


def test_rows_are_what_the_arrays_say(results):
    zero_shot, *rows = (dict(zip(COLUMNS, row, strict=True)) for row in answer_rows(results, study_methods(results)))
    assert zero_shot["Model"] == "Zero-shot" and set(list(zero_shot.values())[2:]) == {"–"}
    models = {model.key: model for model in results.models}
    for row, (label, keys) in zip(rows, KEYS.items(), strict=True):
        assert row["Model"] == label
        shares = [models[key].correct / 50 for key in keys]
        errors = []
        for key in keys:  # of few images: half of Wilson's interval, in standard errors
            interval = stats.binomtest(models[key].correct, 50).proportion_ci(0.95, method="wilson")
            errors.append(100 * (interval.high - interval.low) / (2 * stats.norm.ppf(0.975)))
        np.testing.assert_allclose(
            numbers_in(row["Accuracy (%)"]), [100 * np.mean(shares), np.mean(errors)], atol=0.0501
        )
        numbers = marks(results, label, keys)
        for head, name in zip(COLUMNS[2:], MARKS, strict=True):
            if name in numbers:
                np.testing.assert_allclose(numbers_in(row[head]), ends(numbers[name]), atol=0.0501)
            else:
                assert row[head] == "–"


def test_the_figure_has_the_same_numbers(results):
    drawing = answer_figure(results, study_methods(results))
    shown = {
        (row["method"], row["quantity"]): list(row[["value", "low", "high"]]) for _, row in drawing.numbers.iterrows()
    }
    for label, keys in KEYS.items():
        for name, expected in marks(results, label, keys).items():
            np.testing.assert_allclose(shown.pop((label.partition(",")[0], name)), ends(expected), atol=1e-5)
    assert not shown
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == "points of accuracy"
    names = [text.get_text() for text in axes.get_yticklabels()]
    alone = ["whole gain", "attention alone", "tokens alone"]
    added = ["all that is added", "mean of what is added", "best constant"]
    assert names == ["IVLP", *alone, *added, "Bias tuning", *alone]


def test_markers_of_two_methods_do_not_touch_in_a_figure_for_a_phone(results):
    figure = answer_figure(results, study_methods(results)).figure
    assert figure.get_figwidth() * 96 * 1.15 < 440  # CSS pixels, see `save_picture`
    figure.draw_without_rendering()
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_marker() in "Dos^v"]
    heights = sorted(axes.transData.transform((0, y))[1] for line in marks for y in line.get_ydata())
    size = max(line.get_markersize() for line in marks) * figure.dpi / 72
    assert len(heights) == 9 and np.diff(heights).min() > 1.3 * size


def test_a_start_elsewhere_is_told(results):
    labels = results.predictions.labels
    zero = results.predictions.zero_shot
    outcomes = [recomputed.mixture_outcomes(results, key, "accuracy", "both") for key in KEYS["IVLP, 2 seeds"]]
    start = np.mean([outcome["RRR"].mean() for outcome in outcomes])
    assert abs(start - 100 * (zero == labels).mean()) > 0.05
    assert f"over the text that training starts from; its accuracy: IVLP {start:.1f} %," in answer_note(
        results, study_methods(results)
    )


def test_a_model_that_cannot_be_taken_apart_has_its_gain(results):
    missing = {key: Missing("A head has no second run.") for key in ("ivlp", "ivlp_seed2", "bias")}
    study = only_sections(results, "verdict", sections=("predictions", "factorial", "verdict"))
    study = conclude_study(dataclasses.replace(study, factorial=CausalTests(missing, ())))
    methods = study_methods(study)
    _, row, _ = answer_rows(study, methods)
    labels = study.predictions.labels
    models = study.predictions.models
    before = models["zero_shot"] == labels
    changes = [100.0 * ((models[key] == labels) - 1.0 * before) for key in KEYS["IVLP, 2 seeds"]]
    np.testing.assert_allclose(numbers_in(row[2]), ends(number(drawn(np.stack(changes)))), atol=0.0501)
    assert set(row[3:]) == {"–"} and answer_figure(study, methods) is None
    assert study.answer.headline.endswith("why Bias tuning (+24.0 points) differs from CLIP was not tested.")
    change, reason, _ = study.answer.reasons
    assert change.text.startswith(f"{row[2].partition(' ')[0]} points (")
    assert reason.text == "IVLP, 2 seeds, Bias tuning: A head has no second run."


def shares_in(text):
    """Shares and ends of their intervals, in percent."""
    return [[float(x) for x in match] for match in re.findall(r"(-?\d+) % \((-?\d+) to (-?\d+)\)", text)]


def test_the_reasons_have_the_numbers_of_the_arrays(results):
    """Independently: corners, levels, constants and fitted forms in plain loops over the study's arrays."""
    looks, added, bias = results.answer.reasons
    assert [looks.about, added.about, bias.about] == [
        "Where CLIP looks",
        "What is added to CLIP's tokens",
        "A fixed bias in its place",
    ]
    corners = [recomputed.alone(results, keys, "accuracy") for keys in KEYS.values()]
    expected = [ends(of[name], SHARES, 100) for name in ("tokens alone", "attention alone") for of in corners]
    np.testing.assert_allclose(shares_in(looks.text), expected, atol=0.501)
    of_ivlp = recomputed.added(results, KEYS["IVLP, 2 seeds"], "accuracy")
    levels = [ends(of_ivlp[name], SHARES, 100) for name in ("mean of what is added", "best constant")]
    np.testing.assert_allclose(shares_in(added.text), levels, atol=0.501)
    constants = recomputed.constants(results, KEYS["IVLP, 2 seeds"], "accuracy")
    kept = ends(constants["kept:kind"], SHARES, 100)
    np.testing.assert_allclose(shares_in(bias.text)[-1], kept, atol=0.501)
    (fitted,) = (each for each in results.replacement.models.values() if not isinstance(each, Missing))
    right, decided = fitted.by_image.correct, fitted.by_image.decisions
    (form,) = (at for at, each in enumerate(fitted.by_image.students, 2) if each.kind is Kind.FITTED)
    lost = 100 * (right[:, form].mean() - right[:, 1].mean())
    moved = decided[:, 1] != decided[:, 0]
    same = 100 * (decided[moved, form] == decided[moved, 1]).mean()
    assert f"accuracy changes by {lost:+.1f} points (" in bias.text and f"), and {same:.0f} % (" in bias.text
    assert bias.text.endswith("Bias tuning is a fixed bias itself.")
    for label, keys in KEYS.items():
        gain = recomputed.effects(results, keys, "accuracy")["gain"]
        assert f"{label} ({gain['value']:+.1f} points)" in results.answer.headline
    assert "over 50 images of the test split and over seeds" in results.answer.certainty


def test_the_fitted_form_of_an_adapter_with_a_label_of_its_own():
    single = only_sections(synthetic_results(pictures=1), "replacement")
    models = tuple(
        dataclasses.replace(model, label="IVLP (seed 1)") if model.key == "ivlp" else model for model in single.models
    )
    answer = conclude_study(dataclasses.replace(single, models=models)).answer
    (bias,) = (reason.text for reason in answer.reasons if reason.about == "A fixed bias in its place")
    assert bias.startswith("With two vectors") and "in the place of IVLP (seed 1), fitted to its predictions" in bias


def facts(label="M", gain=20.0):
    return MethodResult(
        label=label,
        name=label,
        method="ivlp",
        models=(label,),
        prompts=True,
        learns_constant=False,
        accuracy=60.0,
        standard_error=2.0,
        gain=Estimate(gain, gain - 5, gain + 5),
        start=None,
    )


def method(label="M", gain=20.0):
    return MethodResults(facts(label, gain), verdict=None, summary=None, replaced=None, test=None, constants=None)


def share(low, high):
    """A share with its interval, in percent of a gain of 20 points."""
    middle = (low + high) / 2
    return Estimate(middle / 5, low / 5, high / 5, Estimate(middle / 100, low / 100, high / 100))


LITTLE, SOME, MUCH, NEARLY_ALL = share(-5, 20), share(10, 40), share(60, 90), share(80, 95)


def measured(verdict, label="M", *, gain=20.0, attention=SOME, values=MUCH, images=50, learns=False):
    """A method with a verdict, two of its effects, and what the mean keeps and loses."""
    gain = Estimate(gain, gain - 5, gain + 5)
    corners = {"RR": Estimate(0.0), "PR": attention, "RP": values}
    effects = Effects(Estimate(50.0), gain, {"attention": attention, "values": values}, {}, corners)
    replacements = Replacements(gain, {"kind": SOME}, {"kind": MUCH}, None)
    method = dataclasses.replace(facts(label), gain=gain, learns_constant=learns)
    return MethodTest(method, verdict, effects, None if learns else replacements, images)


GAINED = "M (+20.0 points, +15.0 to +25.0) beats CLIP"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (measured("tokens"), f"{GAINED} mainly through what it adds to CLIP's tokens."),
        (
            measured("tokens", values=NEARLY_ALL),
            f"{GAINED} mainly through what it adds to CLIP's tokens, not by changing where CLIP looks.",
        ),
        (measured("attention", attention=MUCH, values=SOME), f"{GAINED} mainly by changing where CLIP looks."),
        (
            measured("attention", attention=NEARLY_ALL, values=LITTLE),
            f"{GAINED} mainly by changing where CLIP looks, not through what it adds to CLIP's tokens.",
        ),
        (
            measured("either", attention=NEARLY_ALL, values=MUCH),
            f"{GAINED} by changing where CLIP looks and through what it adds to CLIP's tokens, each of which alone"
            " gives more than half of the gain.",
        ),
        (
            measured("together", values=SOME),
            f"{GAINED} by changing where CLIP looks and through what it adds to CLIP's tokens, neither of which alone"
            " gives half of the gain.",
        ),
        (
            measured("undecided"),
            f"{GAINED}, undecided whether by changing where CLIP looks or through what it adds to CLIP's tokens.",
        ),
        (
            measured("no gain", gain=1.0),
            "M (+1.0 points, -4.0 to +6.0) does not surely beat CLIP, so there is no gain to explain.",
        ),
        (measured("no gain", gain=-9.0), "M (-9.0 points, -14.0 to -4.0) is worse than CLIP, so there is no gain to"),
        (measured("few images", images=12), "There are too few images, 12, to explain M ("),
        (measured("outside"), f"{GAINED} by its classifier alone, and nothing changes inside CLIP."),
        (measured("untested"), "Why M (+20.0 points, +15.0 to +25.0) differs from CLIP was not tested."),
    ],
)
def test_the_answer_is_one_plain_sentence(method, words):
    assert headline([method]).startswith(words) and len(re.findall(r"\.(?!\d)", headline([method]))) == 1


def test_methods_of_one_verdict_share_a_clause():
    tests = [measured("tokens", "A", values=NEARLY_ALL), measured("no gain", "B", gain=0.0), measured("tokens", "C")]
    assert headline(tests) == (
        "A (+20.0 points) and C (+20.0 points) beat CLIP mainly through what they add to CLIP's tokens; B (+0.0 points)"
        " does not surely beat CLIP, so there is no gain to explain."
    )
    tests = [measured("tokens", f"M{place}", values=NEARLY_ALL) for place in range(4)]
    assert headline(tests) == (
        "M0, M1, M2 and M3 beat CLIP mainly through what they add to CLIP's tokens, not by changing where CLIP looks."
    )
    assert headline([]) == "There is no tuned model here to explain."


def test_what_a_fixed_bias_does_is_told():
    *_, bias = reasons([measured("tokens")])
    assert bias.text == (
        "The mean of what M adds keeps 25 % (10 to 40) of its gain; without it 75 % (60 to 90) is lost. Another"
        " constant than the mean may keep more."
    )
    *_, bias = reasons([measured("tokens"), measured("tokens", "N")])
    assert bias.text.count("Another constant") == 1
    *_, bias = reasons([measured("tokens", learns=True), dataclasses.replace(measured("tokens", "N"), replaced=None)])
    assert bias.text == "M is a fixed bias itself. It was not measured with N."


def test_reasons_of_many_methods_are_ranges():
    values = (MUCH, share(20, 30), share(70, 99), share(40, 60), MUCH)
    tests = [measured("tokens", f"M{place}", values=value) for place, value in enumerate(values)]
    looks, bias = (reason.text for reason in reasons(tests))
    assert looks == (
        "With CLIP's attention frozen, what is added to tokens has 25 to 84 % of the gain; surely more than half with"
        " M0, M2 and M4. The new attention alone has 25 to 25 %; with no method surely more than half."
    )
    assert bias == (
        "The mean of what a method adds keeps 25 to 25 % of its gain. Another constant than the mean may keep more."
    )


def test_without_a_gain_the_reasons_are_the_change_and_what_to_do():
    change, advice = reasons([measured("no gain", gain=1.0)])
    assert change.text == "+1.0 points (-4.0 to +6.0) with M."
    assert advice.about == "What to do" and "learning rate" in advice.text


def test_a_head_on_frozen_features_gains_outside(results):
    missing = {key: Missing(NOTHING_INSIDE) for key in ("ivlp", "ivlp_seed2", "bias")}
    study = only_sections(results, "verdict", sections=("predictions", "factorial", "verdict"))
    study = conclude_study(dataclasses.replace(study, factorial=CausalTests(missing, ())))
    assert [test.verdict for test in method_tests(study)] == ["no gain", "outside"]
    assert study.answer.headline.endswith("beats CLIP by its classifier alone, and nothing changes inside CLIP.")


def test_of_many_methods_those_that_gain_most_are_shown(results):
    methods = [method(f"M{place}", gain=10.0 + 7 * place % 11) for place in range(11)]
    rows = answer_rows(results, methods)
    gains = {each.facts.label: each.facts.gain.value for each in methods}
    most = sorted(gains, key=gains.get)[-(MOST_ROWS - 1) :]
    assert len(rows) == MOST_ROWS == 8 and [row[0] for row in rows[1:]] == [name for name in gains if name in most]
    assert "4 methods of smaller gain" in answer_note(results, methods)


def test_the_approach_is_for_who_read_nothing(results):
    assert "prompts, a few learned vectors" in results.answer.approach
    assert "prompts" not in approach(results.tuned[-1:])
