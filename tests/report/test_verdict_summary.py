"""Verdicts over datasets and seeds: what is shown is the mean of what each dataset's images give, computed anew."""

import copy
import dataclasses
import re
import statistics
import types

import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import save_results
from clipbias.explain.verdict import verdicts
from clipbias.report import verdict_summary
from clipbias.report.study_results import StudyResults
from clipbias.report.summary_figures import summary_figure
from clipbias.report.verdict_summary import MethodSummary, left_out, summarize_verdicts
from clipbias.report.verdict_tables import summary_table
from tests.report import recomputed
from tests.report.synthetic import synthetic_results
from tools import draw_verdict

T_OF_TWO = 4.302652729911275  # Student's 97.5 % quantile with two degrees of freedom, from a printed table
EFFECTS, FORMS = ("attention", "scale", "values"), ("vector", "kind", "token")
KEPT = (*FORMS, "tuned")
LABELS = {"IVLP": "ivlp", "Bias tuning": "bias"}
KNOWN = {}  # what was computed anew of the module's studies


def study(dataset, seed, *, twins=False):
    """Synthetic results; with twins, a second IVLP whose outcomes are those of another seed."""
    results = synthetic_results(dataset=dataset, seed=seed)
    if twins:
        other = synthetic_results(dataset=dataset, seed=seed + 100)
        results.scalars["models"].append(results.scalars["models"][1] | {"key": "ivlp_2", "label": "IVLP (2)"})
        for section in ("factorial", "amounts"):
            results.scalars[section]["ivlp_2"] = other.scalars[section]["ivlp"]
            prefix = f"{section}/ivlp/"
            for name in list(other.under(prefix)):
                results.arrays[name.replace("/ivlp/", "/ivlp_2/")] = other.arrays[name]
        results.arrays["predictions/ivlp_2"] = other.arrays["predictions/ivlp"]
        results.scalars["verdict"], results.scalars["agreement"] = verdicts(results)
    return results


@pytest.fixture(scope="module")
def results():
    return {name: study(name, seed) for seed, name in enumerate(("demo/digits", "demo/fashion", "demo/emoji"))}


@pytest.fixture(scope="module")
def summaries(results):
    return summarize_verdicts(StudyResults(each) for each in results.values())


def student(values):
    """Mean and interval of three numbers."""
    mean, half = statistics.fmean(values), T_OF_TWO * statistics.stdev(values) / 3**0.5
    return {"value": mean, "low": mean - half, "high": mean + half}


def over_zero_shot(results, key, quantity):
    """Points over zero-shot's own answers, image by image: of the start, the tuned model, or a constant."""
    section, forms = ("amounts", ["reference", *FORMS, "tuned"]) if quantity in FORMS else ("factorial", None)
    correct = results.arrays[f"{section}/{key}/correct"]
    if quantity in FORMS:
        own = correct[:, forms.index(quantity)]
    else:
        letters = 2 if key == "bias" else 3
        own = correct[:, 0, {"start": 0, "gain": 2**letters - 1}[quantity]]
    zero = [
        results.arrays["predictions/zero_shot"][image] == results.arrays["predictions/labels"][image]
        for image in results.arrays[f"{section}/{key}/images"]
    ]
    return recomputed.number(100.0 * (own.astype(float) - np.array(zero)))


def expected(results, label, outcome, name):
    """By dataset, one number of the verdict, or of the gains over zero-shot."""
    found, key = {}, LABELS[label]
    for dataset, each in results.items():
        place = (dataset, key, outcome, name in KEPT)
        if outcome == "over_zero_shot":
            KNOWN.setdefault((*place, name), {name: over_zero_shot(each, key, name)})
            place = (*place, name)
        elif place not in KNOWN:
            known = recomputed.kept(each, key, outcome) if name in KEPT else None
            KNOWN[place] = known or recomputed.effects(each, key, outcome, "both")
        found[dataset] = KNOWN[place][name]
    return found


def rows_of(drawing):
    frame = drawing.numbers.astype(object)
    return frame.where(frame.notna(), None).to_dict("records")


def of_these(numbers):
    """The mean of three datasets with an interval over their images: three independent ones."""
    value = statistics.fmean(number["value"] for number in numbers)
    arms = [sum((number["value"] - number[end]) ** 2 for number in numbers) ** 0.5 / 3 for end in ("low", "high")]
    return [value - arms[0], value + arms[1]]


def test_every_number_of_the_picture_is_recomputed(results, summaries):
    rows = rows_of(summary_figure(summaries))
    for row in rows:
        numbers = expected(results, row["method"], row["outcome"], row["quantity"])
        assert row["unit"] == {"log_likelihood": "nats"}.get(row["outcome"], "points")
        if row["outcome"] == "log_likelihood" and numbers[row["dataset"]].get("share") is not None:
            wanted = [numbers[row["dataset"]][end] for end in ("share", "share_low", "share_high")]
            shares = [row["share"], row["share_low"], row["share_high"]]
            np.testing.assert_allclose(shares, wanted, rtol=1e-9, atol=1e-9)
        if row["dataset"] == "mean":
            wanted = list(student([number["value"] for number in numbers.values()]).values())
            np.testing.assert_allclose([row["images_low"], row["images_high"]], of_these(list(numbers.values())))
        else:
            wanted = [numbers[row["dataset"]][end] for end in ("value", "low", "high")]
            assert row["seeds"] == 1
        np.testing.assert_allclose([row["value"], row["low"], row["high"]], wanted, rtol=1e-9, atol=1e-9)
    outcomes = [row["outcome"] for row in rows]
    # Gain, effects, constants and "tuned"; the gain over zero-shot, the start and constants. Bias tuning has no scale.
    assert outcomes.count("accuracy") == 4 * (8 + 7) and outcomes.count("log_likelihood") == 3 * (8 + 7)
    assert outcomes.count("over_zero_shot") == 4 * 2 * 5


def test_marks_stand_in_their_panel_and_their_methods_line(results, summaries):
    drawing = summary_figure(summaries)
    gain, effects, kept = drawing.figure.axes
    assert [text.get_text() for text in gain.get_yticklabels()] == list(LABELS)
    start = [("over_zero_shot", "start"), *(("accuracy", name) for name in EFFECTS)]
    constants = [("over_zero_shot", form) for form in FORMS]
    wholes = [
        statistics.fmean(n["value"] for n in expected(results, label, "over_zero_shot", "gain").values())
        for label in LABELS
    ]
    for axes, names in ((gain, [("over_zero_shot", "gain")]), (effects, start), (kept, constants)):
        shown, small = set(), []
        for container in axes.containers:  # means, with their whiskers
            (line, _, (bars,)) = container.lines
            for (x, y), segment in zip(np.asarray(line.get_xydata(), float), bars.get_segments(), strict=True):
                shown.add((round(y), *(round(float(value), 6) for value in (x, segment[0, 0], segment[1, 0]))))
        for line in axes.lines:  # datasets
            if line.get_markersize() == 2.6:
                small += line.get_xdata().tolist()
        wanted, each = set(), []
        for place, label in enumerate(LABELS):
            for outcome, name in names:
                if label == "Bias tuning" and (name == "scale" or name in FORMS):  # its constants are its own bias
                    continue
                numbers = list(expected(results, label, outcome, name).values())
                mean = statistics.fmean(number["value"] for number in numbers)
                wanted.add((place, *(round(value, 6) for value in (mean, *of_these(numbers)))))
                each += [number["value"] for number in numbers]
        assert shown == wanted
        np.testing.assert_allclose(sorted(small), sorted(each), atol=1e-9)
        marks = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "|"]
        assert axes is gain or marks[-1] == pytest.approx(wholes)
    said = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert said == ["start", *EFFECTS, "one vector", "two, by kind of token", "one per token", "whole gain"]


def test_parts_add_up_to_the_gain_over_zero_shot(summaries):
    for summary in summaries:
        for dataset in summary.datasets:
            parts = [("over_zero_shot", "start"), *(("accuracy", name) for name in EFFECTS)]
            values = [summary.of(*part)[dataset]["value"] for part in parts if summary.of(*part)]
            assert sum(values) == pytest.approx(summary.of("over_zero_shot", "gain")[dataset]["value"])


def test_many_methods_are_grouped_by_kind_with_those_left_out_in_the_caption(summaries):
    names = ("tpt", "clip_lora", "mine.py:Own", "maple", "coop", "gda", "vpt", "bias", "ivlp")
    many = [
        dataclasses.replace(summaries[number % 2], method=name, label=name.upper()) for number, name in enumerate(names)
    ]
    drawing = summary_figure(many, ["HEAD, OTHER: It has no towers."])
    gain = drawing.figure.axes[0]
    labels = [text.get_text() for text in gain.get_yticklabels()]
    prompts, weights = ("COOP", "VPT", "IVLP", "MAPLE"), ("BIAS", "CLIP_LORA")
    kinds = ("Training-free", "GDA", "Prompts", *prompts, "Weights", *weights, "Test-time", "TPT", "Others")
    assert labels == [*kinds, "MINE.PY:OWN"]
    shown = {
        labels[round(y)]: x
        for container in gain.containers
        for x, y in np.asarray(container.lines[0].get_xydata(), float)
    }
    wanted = {each.label: each.mean("over_zero_shot", "gain")["value"] for each in many}
    assert shown == pytest.approx(wanted)
    assert drawing.caption.endswith("Not in it: HEAD, OTHER: It has no towers.")
    # In few, kinds are no help, and methods stand as in a table.
    few = [text.get_text() for text in summary_figure(many[:8]).figure.axes[0].get_yticklabels()]
    assert few == ["COOP", "TPT", "VPT", "MAPLE", "GDA", "BIAS", "CLIP_LORA", "MINE.PY:OWN"]


def test_without_a_causal_test_the_gain_is_that_of_the_constants(results):
    bare = copy.deepcopy(results["demo/digits"])
    bare.scalars["factorial"]["ivlp"] = {"missing": "It has no second run."}
    bare.scalars["verdict"], bare.scalars["agreement"] = verdicts(bare)
    drawing = summary_figure(summarize_verdicts([StudyResults(bare)]))
    rows = [row for row in rows_of(drawing) if row["method"] == "IVLP" and row["outcome"] != "log_likelihood"]
    (row,) = [row for row in rows if row["outcome"] == "over_zero_shot" and row["quantity"] == "gain"]
    correct, zero = bare.arrays["amounts/ivlp/correct"][:, 4], bare.arrays["predictions/zero_shot"]
    numbers = recomputed.number(100.0 * (correct - (zero == bare.arrays["predictions/labels"]).astype(float)))
    assert [row[end] for end in ("value", "low", "high")] == pytest.approx(
        [numbers[end] for end in ("value", "low", "high")]
    )
    assert not [row for row in rows if row["quantity"] in ("start", *EFFECTS)]
    assert left_out([StudyResults(bare)]) == []
    del bare.scalars["amounts"]["ivlp"]
    bare.scalars["verdict"], bare.scalars["agreement"] = verdicts(bare)
    assert left_out([StudyResults(bare)]) == ["IVLP: It has no second run."]


def numbers_in(text):
    return [float(number) for number in re.findall(r"[+-]?\d+\.?\d*", text)]


def test_the_table_has_each_dataset_and_their_mean(results, summaries):
    table = summary_table(summaries[0])
    assert table.columns == ("", "demo/digits", "demo/fashion", "demo/emoji", "Mean")
    rows = {row[0]: [numbers_in(cell) for cell in row[1:]] for row in table.rows}
    for outcome, unit, digits in (("accuracy", "points", 1), ("log_likelihood", "nats", 3)):
        for name in ("gain", *EFFECTS):
            numbers = list(expected(results, "IVLP", outcome, name).values())
            wanted = [[number[end] for end in ("value", "low", "high")] for number in numbers]
            wanted.append(list(student([number["value"] for number in numbers]).values()))
            np.testing.assert_allclose(rows[f"{name}, {unit}"], wanted, atol=0.501 * 10**-digits)
    texts = {**{name: f"share of {name}" for name in EFFECTS}, "vector": "kept by one vector"}
    texts |= {"kind": "kept by two, by kind of token", "token": "kept by one per token"}
    for name, text in texts.items():
        numbers = list(expected(results, "IVLP", "log_likelihood", name).values())
        wanted = [[100 * number[end] for end in ("share", "share_low", "share_high")] for number in numbers]
        wanted.append([100 * value for value in student([number["share"] for number in numbers]).values()])
        np.testing.assert_allclose(rows[text], wanted, atol=0.501)
    assert len(rows) == 8 + 6


def test_sentences_say_the_means(results, summaries):
    said = verdict_summary.sentences(summaries[0])
    for text, parts in (
        (said[0], [("accuracy", "gain", "value", 1), ("log_likelihood", "gain", "value", 1)]),
        (said[2], [("log_likelihood", name, "share", 100) for name in EFFECTS]),
        *((said[3 + place], [("log_likelihood", form, "share", 100)]) for place, form in enumerate(FORMS)),
    ):
        wanted = []
        for outcome, name, end, scale in parts:
            values = [number[end] * scale for number in expected(results, "IVLP", outcome, name).values()]
            wanted += student(values).values()
        found = numbers_in(text.removeprefix("Over 3 datasets "))[: len(wanted)]
        np.testing.assert_allclose(found, wanted, atol=0.501)
    assert "so values carry most of it" in said[2]
    for sentence, form in zip(said[3:], FORMS, strict=False):
        share = student([number["share"] for number in expected(results, "IVLP", "log_likelihood", form).values()])
        above = [share[end] > 0.5 for end in ("low", "high")]
        ending = {2: "most of it.", 0: "less than half.", 1: "undecided whether that is most of it."}[sum(above)]
        assert sentence.endswith(f": {ending}")
    wanted = []
    for name in ("gain", *EFFECTS):
        numbers = list(expected(results, "IVLP", "accuracy", name).values())
        wanted += [statistics.fmean(number["value"] for number in numbers), *of_these(numbers)]
    np.testing.assert_allclose(numbers_in(said[1]), wanted, atol=0.0501)


def method(shares, *, gain=(1.0, 1.1, 0.9), seeds=1, contradictions=(), kept=None):
    """A summary whose effects have these shares by dataset."""
    datasets = [f"d{place}" for place in range(len(gain))]

    def by_dataset(values, parts=None):
        parts = parts if parts is not None else [None] * len(values)
        return {
            name: {"value": value, "low": value - 0.1, "high": value + 0.1, "share": part, "share_low": part,
                   "share_high": part}
            for name, value, part in zip(datasets, values, parts, strict=True)
        }  # fmt: skip

    numbers = {("log_likelihood", name): by_dataset(parts, parts) for name, parts in {**shares, **(kept or {})}.items()}
    numbers |= {(outcome, "gain"): by_dataset(gain) for outcome in ("accuracy", "log_likelihood")}
    return MethodSummary("M", dict.fromkeys(datasets, seeds), numbers, contradictions)


SURE, UNSURE = (0.9, 0.95, 1.0), (0.2, 0.5, 1.6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shares": {"values": SURE, "attention": (0.1, 0.0, 0.0)}}, "so values carry most of it"),
        ({"shares": {"values": (0.0, 0.1, 0.0), "attention": SURE}}, "so attention carries most of it"),
        ({"shares": {"values": UNSURE, "attention": (0.1, 0.0, 0.0)}}, "undecided which carries most"),
        ({"shares": {"values": SURE}, "gain": (3.0, -1.0, 0.1)}, "Undecided, because neither interval"),
        ({"shares": {"values": (0.9, None, 0.9)}}, "Undecided, because not every dataset has a sure gain"),
        ({"shares": {"values": SURE}, "contradictions": ("d1",)}, "undecided, because seeds contradict each other"),
        ({"shares": {"values": SURE}, "kept": {"vector": (0.2, 0.25, 0.3)}}, "25 % (13 to 37): less than half"),
        ({"shares": {"values": SURE}, "kept": {"kind": SURE}}, "keep 95 % (83 to 107): most of it"),
        ({"shares": {"values": SURE}, "kept": {"token": UNSURE}}, "undecided whether that is most of it"),
        ({"shares": {"values": SURE}, "seeds": 3}, "Seeds of M agree on every dataset"),
    ],
)  # fmt: skip
def test_sentences_follow_from_the_intervals(given, words):
    if None in given["shares"].get("values", ()):
        given = given | {"shares": {"values": given["shares"]["values"]}}
        summary = method({"values": (0.9, 0.9, 0.9)})
        summary.numbers["log_likelihood", "values"]["d1"]["share"] = None
    else:
        summary = method(**given)
    assert words in " ".join(verdict_summary.sentences(summary))


def test_one_dataset_is_no_sample_of_datasets(results):
    (first, *_) = summarize_verdicts([StudyResults(results["demo/digits"])])
    assert verdict_summary.sentences(first) == []
    assert summary_table(first).columns == ("", "demo/digits")
    drawing = summary_figure([first])
    (container,) = drawing.figure.axes[0].containers
    gain = over_zero_shot(results["demo/digits"], "ivlp", "gain")
    segment = container.lines[2][0].get_segments()[0]
    np.testing.assert_allclose([segment[0, 0], segment[1, 0]], [gain["low"], gain["high"]])
    assert "bootstrap" in drawing.caption and "Student" not in drawing.caption


def test_seeds_are_averaged_before_datasets():
    twins = study("demo/digits", 0, twins=True)
    found = {each.label: each for each in summarize_verdicts([StudyResults(twins)])}
    assert list(found) == ["IVLP", "Bias tuning"] and found["IVLP"].datasets == {"demo/digits": 2}
    number = found["IVLP"].of("log_likelihood", "values")["demo/digits"]
    both = [recomputed.effects(twins, key, "log_likelihood", "both")["values"] for key in ("ivlp", "ivlp_2")]
    for end in ("value", "low", "high", "share", "share_low", "share_high"):
        assert number[end] == pytest.approx(statistics.fmean(one[end] for one in both))
    assert summary_table(found["IVLP"]).columns == ("", "demo/digits (2 seeds)")
    apart = [StudyResults(study("demo/digits", 0)), StudyResults(study("demo/digits", 100))]
    assert summarize_verdicts(apart)[0].of("log_likelihood", "values")["demo/digits"] == pytest.approx(number)


def test_seeds_that_contradict_each_other_are_told():
    twins = study("demo/digits", 0, twins=True)
    ((one, *_),) = [summarize_verdicts([StudyResults(twins)])]
    assert one.contradictions == ()
    for outcome in ("log_likelihood", "correct"):
        array = twins.arrays[f"factorial/ivlp_2/{outcome}"]
        # Attention and values change places: streams are numbered by the letters of attention, scale, values.
        twins.arrays[f"factorial/ivlp_2/{outcome}"] = array[:, :, [0, 4, 2, 6, 1, 5, 3, 7, 8, 9, 10, 11]]
    twins.scalars["verdict"], twins.scalars["agreement"] = verdicts(twins)
    summary = summarize_verdicts([StudyResults(twins)])[0]
    assert summary.contradictions == ("demo/digits",)
    assert "contradict each other on demo/digits" in verdict_summary.sentences(summary)[-1]


def test_a_share_of_a_loss_is_no_share_of_a_gain(results):
    losing = study("demo/digits", 0)
    array = losing.arrays["factorial/ivlp/log_likelihood"]
    losing.arrays["factorial/ivlp/log_likelihood"] = -array
    losing.scalars["verdict"], losing.scalars["agreement"] = verdicts(losing)
    assert losing.scalars["verdict"]["ivlp"]["effects"]["log_likelihood"]["both"]["values"]["share"] is not None
    summary = summarize_verdicts([StudyResults(losing), StudyResults(results["demo/fashion"])])[0]
    assert summary.of("log_likelihood", "values")["demo/digits"]["share"] is None
    assert summary.mean_share("log_likelihood", "values") is None
    assert summary.mean("log_likelihood", "values")["low"] is not None


def test_the_command_draws_studies_and_prints_their_numbers(results, tmp_path, capsys, monkeypatch):
    head = study("demo/digits", 0)
    for key, label in (("head", "Head"), ("head_2", "Head (seed 2)")):
        head.scalars["models"].append(head.scalars["models"][1] | {"key": key, "label": label, "method": "taskres"})
        for section in ("factorial", "amounts"):
            head.scalars[section][key] = {"missing": f"Head has no {section}."}
        head.arrays[f"predictions/{key}"] = head.arrays["predictions/ivlp"]
    head.scalars["verdict"], head.scalars["agreement"] = verdicts(head)
    for place, each in enumerate((head, *list(results.values())[1:])):
        save_results(tmp_path / "why" / f"study{place}", each)
    picture = tmp_path / "images" / "verdict.png"
    monkeypatch.setattr(draw_verdict, "_TO", types.SimpleNamespace(value=str(picture)))
    assert draw_verdict.main([str(tmp_path / "why")]) == 0
    said = capsys.readouterr().out
    assert "IVLP" in said and "so values carry most of it" in said
    assert said.count("Head has no factorial.") == said.count("Head has no amounts.") == 1
    assert "Not in it: Head: Head has no factorial." in said  # whatever the seeds
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.with_suffix(".csv").read_text().count("\n") == 1 + (4 + 3) * 15 + 4 * 10
    with pytest.raises(ClipbiasError, match="give finished studies"):
        draw_verdict.main([])
