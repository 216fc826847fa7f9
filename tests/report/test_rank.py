"""The picture of the rank curve: each mark where its rank is, with the numbers of the comparison."""

import dataclasses

import numpy as np
import pytest

from clipbias.analysis.replacement import Origin
from clipbias.report.rank import RANK_PLACES, rank_figure
from tests.report.synthetic import synthetic_results


def test_each_mark_is_a_comparison():
    study = synthetic_results(pictures=1)
    figure = rank_figure([study])
    (method,) = study.sections["rank"].methods
    assert figure is not None and figure.caption.startswith(method.sentence)
    assert [axes.get_ylabel() for axes in figure.figure.axes] == list(dict.fromkeys(figure.numbers["quantity"]))
    assert [label.get_text() for label in figure.figure.axes[-1].get_xticklabels()] == list(RANK_PLACES)
    rows = {row.student.form: row for row in method.rows}
    places = {
        "ivlp": len(RANK_PLACES) - 1,
        "class": 0,
        "rank0": RANK_PLACES.index("0"),
        "rank4": RANK_PLACES.index("4"),
    }
    for axes, quantity in zip(figure.figure.axes, ("moved", "share", "divergence"), strict=True):
        drawn = {}
        for container in axes.containers:
            line, _, (bars,) = container.lines
            for x, y, ends in zip(*line.get_data(), bars.get_segments(), strict=True):
                drawn[round(x)] = (y, *ends[:, 1])
        unit = 1 if quantity == "divergence" else 100
        for form, place in places.items():
            number = getattr(rows[form], quantity)
            assert drawn[place] == pytest.approx(unit * np.array([number.value, number.low, number.high])), form
    assert rows["ivlp"].student.kind is Origin.CEILING
    assert rank_figure([dataclasses.replace(study, sections={})]) is None


def test_datasets_side_by_side_have_changed_predictions_alone():
    study = synthetic_results(pictures=1)
    (method,) = study.sections["rank"].methods
    other = dataclasses.replace(study, dataset=dataclasses.replace(study.dataset, name="demo/emoji"))
    figure = rank_figure([study, other])
    assert figure is not None
    assert len(figure.figure.axes) == 2
    assert figure.caption.count(method.sentence) == 2
    names = figure.numbers["dataset"]
    assert set(names) == {"demo/digits", "demo/emoji"}
    (line,) = [each for each in figure.figure.axes[1].lines if each.get_marker() == "D"]
    ceiling = next(row for row in method.rows if row.student.kind is Origin.CEILING)
    assert line.get_ydata() == pytest.approx([100 * ceiling.moved.value])
