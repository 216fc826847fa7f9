"""A table of classes, against plain loops over a study's arrays."""

import collections

import pytest

from clipbias.report.study_tables import image_tables
from tests.report.synthetic import synthetic_results


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1)


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
    (whole,) = image_tables(results)
    monkeypatch.setattr("clipbias.report.study_tables.CLASSES", 2)
    (cut,) = image_tables(results)
    assert cut.rows == [whole.rows[0], whole.rows[-1]] and "of 4 classes the 1 at either end" in cut.note
