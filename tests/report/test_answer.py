"""A report's first page: numbers against plain loops over a study's arrays, and sentences that intervals allow."""

import re

import numpy as np
import pytest

from clipbias.explain.verdict import verdicts
from clipbias.report.answer import MethodAnswer, answer_sentences, certainty, method_answers, question
from clipbias.report.answer_figure import COLUMNS, MOST_ROWS, answer_figure, answer_note, answer_rows
from clipbias.report.study_results import StudyResults
from tests.report.recomputed import effects, kept, number
from tests.report.synthetic import synthetic_results

EFFECTS = ("attention", "scale", "values")


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1)


def numbers_in(text):
    return [float(part) for part in re.findall(r"[+-]?\d+(?:\.\d+)?", text)]


def ends(found, kind=""):
    names = ("share", "share_low", "share_high") if kind else ("value", "low", "high")
    return [found[name] * (100 if kind else 1) for name in names]


def gain_over_zero_shot(results, key):
    """Of the tuned model as the causal test has it, or else as it was predicted."""
    labels, before, after = (results.arrays[f"predictions/{name}"].tolist() for name in ("labels", "zero_shot", key))
    right = {place: float(a == c) for place, (a, c) in enumerate(zip(after, labels, strict=True))}
    if f"factorial/{key}/images" in results.arrays:
        last = 2 ** len(results.scalars["factorial"][key]["effects"]) - 1
        tested = results.arrays[f"factorial/{key}/images"].tolist()
        right = dict(zip(tested, results.arrays[f"factorial/{key}/correct"][:, 0, last].tolist(), strict=True))
    return number(np.array([100.0 * (own - (before[place] == labels[place])) for place, own in right.items()]))


def test_rows_are_what_the_arrays_say(results):
    study = StudyResults(results)
    zero_shot, *rows = (dict(zip(COLUMNS, row, strict=True)) for row in answer_rows(study, method_answers(study)))
    assert zero_shot["Model"] == "Zero-shot" and set(list(zero_shot.values())[2:]) == {"–"}
    for row, model in zip(rows, results.scalars["models"][1:], strict=True):
        key, share = model["key"], model["correct"] / model["images"]
        error = 100 * (share * (1 - share) / model["images"]) ** 0.5
        np.testing.assert_allclose(numbers_in(row["Accuracy (%)"]), [100 * share, error], atol=0.0501)
        own = effects(results, key, "accuracy", "both")
        gains = [*ends(gain_over_zero_shot(results, key)), *ends(own["gain"])]
        np.testing.assert_allclose(numbers_in(row["Gain (points)"]), gains, atol=0.0501)
        shares = {name.capitalize(): own[name] for name in EFFECTS if name in own}
        if key == "ivlp":  # what a learned bias keeps of itself is no finding
            constants = kept(results, key, "accuracy")
            shares |= {"One vector": constants["vector"], "Two vectors": constants["kind"]}
        for name in COLUMNS[3:]:
            if name in shares:
                np.testing.assert_allclose(numbers_in(row[name]), ends(shares[name], "share"), atol=0.501)
            else:
                assert row[name] == "–"
    assert "“Own start”" in answer_note(study, method_answers(study))


def test_the_figure_has_the_same_numbers(results):
    drawing = answer_figure(method_answers(StudyResults(results)))
    found = {tuple(row[:2]): row[3:] for row in drawing.numbers.itertuples(index=False)}
    for label, key in (("IVLP", "ivlp"), ("Bias tuning", "bias")):
        expected = effects(results, key, "accuracy", "both")
        for name in (*EFFECTS, "gain"):
            if name in expected:
                np.testing.assert_allclose(found.pop((label, name)), ends(expected[name]), rtol=1e-9)
    assert not found
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["whole gain", *EFFECTS]


def test_seeds_of_a_method_are_one_row(results):
    arrays, scalars = dict(results.arrays), dict(results.scalars)
    first, other = "ivlp", "ivlp_seed2"
    for name, array in results.arrays.items():
        if name.startswith((f"factorial/{first}/", f"amounts/{first}/")):
            turned = name.endswith(("correct", "log_likelihood"))
            arrays[name.replace(first, other)] = np.roll(array, 1, 0) if turned else array
    labels = arrays["predictions/labels"]
    arrays[f"predictions/{other}"] = np.where(np.arange(len(labels)) < 30, labels, 1)
    right = int((arrays[f"predictions/{other}"] == labels).sum())
    model = results.scalars["models"][1] | {"key": other, "label": "IVLP (seed 2)", "correct": right}
    scalars["models"] = [*results.scalars["models"], model]
    for name in ("factorial", "amounts"):
        scalars[name] = {**results.scalars[name], other: results.scalars[name][first]}
    found = type(results)(arrays, scalars)
    found.scalars["verdict"], found.scalars["agreement"] = verdicts(found)
    study = StudyResults(found)
    (row,) = [row for row in answer_rows(study, method_answers(study)) if row[0].startswith("IVLP")]
    assert row[0] == "IVLP (2 seeds)" and len(answer_rows(study, method_answers(study))) == 3
    assert numbers_in(row[1])[0] == pytest.approx(100 * (36 + right) / 2 / 50, abs=0.0501)
    each = [gain_over_zero_shot(found, key) for key in (first, other)]
    averages = [np.mean([one[end] for one in each]) for end in ("value", "low", "high")]
    np.testing.assert_allclose(numbers_in(row[2])[:3], averages, atol=0.0501)
    assert "other datasets" in certainty(study, method_answers(study))


def test_a_model_that_cannot_be_taken_apart_has_its_gain(results):
    scalars = {**results.scalars, "verdict": {"ivlp": {"missing": "A head has no second run."}}}
    arrays = {name: array for name, array in results.arrays.items() if name.startswith("predictions/")}
    study = StudyResults(type(results)(arrays, scalars))
    methods = method_answers(study)
    _, row, _ = answer_rows(study, methods)
    np.testing.assert_allclose(numbers_in(row[2]), ends(gain_over_zero_shot(study.results, "ivlp")), atol=0.0501)
    assert set(row[3:]) == {"–"} and answer_figure(methods) is None
    assert len(answer_sentences(study, methods)) == 1


def estimate(value, share=None, arm=5.0):
    found = {"value": value, "low": value - arm, "high": value + arm}
    if share is None:
        return found | {"share": None, "share_low": None, "share_high": None}
    return found | {"share": share, "share_low": share - 0.1, "share_high": share + 0.1}


def method(label="M", gain=20.0, attention=0.1, scale=0.0, values=0.9, kind=0.2, contradiction=False):
    shares = {"attention": attention, "scale": scale, "values": values, "kind": kind, "vector": 0.0}
    sure = gain > 5
    numbers = {name: estimate(gain * part, part if sure else None) for name, part in shares.items()}
    numbers["gain"] = estimate(gain)
    return MethodAnswer(label, 1, 60.0, 2.0, estimate(gain), False, numbers, contradiction)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "what is added to tokens carries 90 % (80 to 100) with M: most of it, which speaks against (a)."),
        ({"attention": 0.8, "values": 0.2}, "80 % (70 to 90) with M: most of it, which speaks for (a)."),
        ({"scale": 0.8, "values": 0.2}, "with M: most of it, which speaks for neither (a) nor (b)."),
        ({"values": 0.55}, "no single effect surely carries more than half with M."),
        ({"attention": 0.9}, "no single effect surely carries more than half with M."),  # two, which scale takes back
        ({"contradiction": True}, "no single effect surely carries more than half with M."),
        ({}, "keep 20 % (10 to 30) with M: less than half of it, which speaks against (b)."),
        ({"kind": 0.9}, "keep 90 % (80 to 100) with M: most of it, which speaks for (b)."),
        ({"kind": 0.5}, "keep 50 % (40 to 60) with M: undecided whether that is most of it."),
        ({"gain": 3.0}, "No gain in accuracy is sure"),
    ],
)  # fmt: skip
def test_sentences_take_a_side_where_a_whole_interval_does(results, given, words):
    said = answer_sentences(StudyResults(results), [method(**given)])
    assert words in " ".join(said) and len(said) <= 3
    assert all("accuracy" in sentence for sentence in said[1:])
    assert said[0].startswith("Zero-shot CLIP gets 44.0 % of the images right; tuning changes that by +")


def test_methods_of_different_answers_are_told_apart(results):
    methods = [method("A"), method("B", values=0.1, attention=0.9, kind=0.9), method("C", gain=1.0)]
    _, carried, constants = answer_sentences(StudyResults(results), methods)
    assert "with B: most of it, which speaks for (a)" in carried and "with A: most of it" in carried
    assert "with C it is not sure that there is a gain" in carried
    assert "with B: most of it, which speaks for (b)" in constants and "with A: less than half" in constants


def test_of_many_methods_those_that_gain_most_are_shown(results):
    study = StudyResults(results)
    methods = [method(f"M{place}", gain=10.0 + 7 * place % 11) for place in range(11)]
    rows = answer_rows(study, methods)
    gains = {each.label: each.gain["value"] for each in methods}
    most = sorted(gains, key=gains.get)[-(MOST_ROWS - 1) :]
    assert len(rows) == MOST_ROWS == 8 and [row[0] for row in rows[1:]] == [name for name in gains if name in most]
    assert "4 methods of smaller gain" in answer_note(study, methods)
    said = answer_sentences(study, methods)
    assert len(said) == 3 and "11 of 11 methods surely gain" in said[0] and max(map(len, said)) < 220
    assert "carries 90 to 90 % with 11 methods" in said[1]


def test_the_question_is_for_who_read_nothing(results):
    assert "prompts, a few vectors that are learned" in question(StudyResults(results))
    scalars = {**results.scalars, "models": [results.scalars["models"][place] for place in (0, 2)]}
    assert "prompts" not in question(StudyResults(type(results)(results.arrays, scalars)))
