"""Tables of classes and single images, against plain loops over a study's arrays."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from clipbias.explain.results import CausalTests, Missing
from clipbias.report.image_tables import image_tables
from tests.report.recomputed import mixture_outcomes
from tests.report.synthetic import synthetic_results


@pytest.fixture(scope="module")
def results():
    drawn_results = synthetic_results(pictures=1)
    # Decisions that flip both ways, under every mixture.
    for test in drawn_results.factorial.models.values():
        correct = test.outcomes.correct
        correct[...] = np.random.default_rng(0).integers(0, 2, correct.shape, np.uint8)
    return drawn_results


@pytest.fixture(scope="module")
def tables(results):
    return image_tables(results)


def test_classes(results, tables):
    predicted = results.predictions.models
    labels = results.predictions.labels.tolist()
    zero_shot = predicted["zero_shot"].tolist()
    totals = []
    for row in tables[0].rows:
        label = int(row[0].removeprefix("class "))
        members = [i for i, other_label in enumerate(labels) if other_label == label]
        right = [zero_shot[i] == label for i in members]
        assert row[1:3] == [str(len(members)), f"{100 * sum(right) / len(members):.1f}"]
        (taken, count), *_ = collections.Counter(zero_shot[i] for i in members if zero_shot[i] != label).most_common(1)
        assert row[3] == f"class {taken} ({count} of {len(members)})"
        totals.append(0.0)
        for key, cell in zip(("ivlp", "bias"), row[4:], strict=True):
            steps = [int(predicted[key][i] == label) - int(zero_shot[i] == label) for i in members]
            mean = sum(steps) / len(steps)
            error = (sum((x - mean) ** 2 for x in steps) / (len(steps) - 1) / len(steps)) ** 0.5
            assert cell == f"{100 * mean:+.1f} ± {100 * error:.1f} ({steps.count(1)}, {steps.count(-1)})"
            totals[-1] += mean
    assert len(totals) == 4 and totals == sorted(totals)


def test_many_classes_are_those_at_either_end(results, monkeypatch):
    whole, _ = image_tables(results)
    monkeypatch.setattr("clipbias.report.image_tables.CLASSES", 2)
    cut, _ = image_tables(results)
    assert cut.rows == [whole.rows[0], whole.rows[-1]] and "of 4 classes the 1 at either end" in cut.note


def shapley_by_orders(outcomes, effects):
    """Of one image: outcomes by mixture, such as RPR."""
    values = dict.fromkeys(effects, 0.0)
    for order in itertools.permutations(range(len(effects))):
        for place, effect in enumerate(order):
            letters = ["P" if k in order[:place] else "R" for k in range(len(effects))]
            before = "".join(letters)
            letters[effect] = "P"
            values[effects[effect]] += (outcomes["".join(letters)] - outcomes[before]) / 6
    return values


def test_what_flipped_decisions(results, tables):
    rows = {(row[0], row[1]): [*row[2:]] for row in tables[1].rows}
    assert list(rows) == [(m, w) for m in ("IVLP", "Bias tuning") for w in ("became right", "became wrong")]
    effects = ("attention", "scale", "values")
    right = {k: v > 0 for k, v in mixture_outcomes(results, "ivlp", "accuracy", "both").items()}
    likely = mixture_outcomes(results, "ivlp", "calibrated", "both")
    for name, sign in (("became right", 1), ("became wrong", -1)):
        first, last = ("RRR", "PPP") if sign > 0 else ("PPP", "RRR")
        images = [i for i in range(len(right["RRR"])) if right[last][i] and not right[first][i]]
        assert len(images) > 1 and rows["IVLP", name][0] == str(len(images))
        values = [shapley_by_orders({k: v[i] for k, v in likely.items()}, effects) for i in images]
        decided = [max(each, key=lambda effect: sign * each[effect]) for each in values]
        flipped = {
            e: [right[a][i] == (sign > 0) for i in images] for e, a in zip(effects, ("PRR", "RPR", "RRP"), strict=True)
        }
        for place, effect in enumerate(effects):
            for text, share in (
                (rows["IVLP", name][1 + place], decided.count(effect) / len(images)),
                (rows["IVLP", name][4 + place], sum(flipped[effect]) / len(images)),
            ):
                assert text == f"{100 * share:.0f} ± {100 * (share * (1 - share) / len(images)) ** 0.5:.0f}"
    assert rows["Bias tuning", "became right"][2] == rows["Bias tuning", "became right"][5] == "–"  # it has no scale


def test_a_model_outside_the_causal_test_has_its_classes_alone(results):
    tests = CausalTests({key: Missing("It has no second run.") for key in ("ivlp", "bias")}, ())
    only = image_tables(dataclasses.replace(results, factorial=tests))
    assert [table.title for table in only] == ["Which classes gain and lose"]
    assert re.search(r"one standard error", only[0].caption) and "±" in only[0].rows[0][4]
