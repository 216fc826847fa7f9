"""Named points: nothing covers anything, and every point stands at its numbers."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from clipbias.report.scatter import MARKER, cost_scatter, spread_markers
from clipbias.report.style import new_figure

ZOO = Path(__file__).parents[2] / "docs/images/zoo.csv"


@pytest.fixture(scope="module")
def zoo():
    return pd.read_csv(ZOO)


@pytest.fixture(scope="module")
def figure(zoo):
    labels = {"x_label": "learned parameters", "y_label": "accuracy (%)"}
    return cost_scatter(zoo, x="parameters", y="accuracy", **labels)


def markers(axes):
    drawn = [line for line in axes.lines if line.get_gid() != "leader"]
    return np.concatenate([np.column_stack([line.get_xdata(), line.get_ydata()]) for line in drawn])


def overlap(box, other):
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def boxes(axes):
    """The boxes of all names and markers in pixels, told apart by what they are of."""
    half = 5 * axes.figure.dpi / 72 / 2
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    labels = [(text.get_text(), text.get_window_extent().extents) for text in names]
    places = axes.transData.transform(markers(axes))
    return labels + [("marker", (x - half, y - half, x + half, y + half)) for x, y in places]


def test_no_name_covers_a_marker_or_another_name_or_leaves_its_panel(zoo, figure):
    assert sorted(text.get_text() for axes in figure.axes for text in axes.texts) == sorted(zoo["label"])
    for axes in figure.axes:
        for (label, first), (other, second) in itertools.combinations(boxes(axes), 2):
            assert not overlap(first, second), (label, other)
        for name, box in boxes(axes):
            assert axes.bbox.x0 - 1 <= box[0] and box[2] <= axes.bbox.x1 + 1, name


def test_no_line_to_a_name_crosses_another_name(figure):
    for axes in figure.axes:
        names = [(text.get_text(), text.get_window_extent().extents) for text in axes.texts]
        for line in axes.lines:
            if line.get_gid() == "leader":
                start, end = axes.transData.transform(line.get_xydata())
                for x, y in start + np.linspace(0.02, 0.9, 60)[:, None] * (end - start):
                    assert not [name for name, box in names if box[0] < x < box[2] and box[1] < y < box[3]]


def test_points_stand_at_their_numbers(zoo, figure):
    """Markers that would cover each other stand side by side, by less than six of their widths."""
    free, paid = figure.axes
    np.testing.assert_allclose(sorted(markers(free)[:, 1]), sorted(zoo.loc[zoo["parameters"] == 0, "accuracy"]))
    assert [label.get_text() for label in free.get_xticklabels()] == ["0"] and paid.get_xscale() == "log"
    paid_rows = zoo[zoo["parameters"] > 0].sort_values(["accuracy", "parameters"])
    drawn = markers(paid)[np.lexsort(markers(paid).T)]
    np.testing.assert_allclose(drawn[:, 1], paid_rows["accuracy"])
    width = MARKER * figure.dpi / 72
    expected = paid.transData.transform(paid_rows[["parameters", "accuracy"]])
    moved = np.abs(paid.transData.transform(drawn) - expected)[:, 0]
    assert (moved < 6 * width).all() and (moved < 1).sum() > len(paid_rows) / 2


def test_markers_of_one_place_stand_side_by_side():
    axes = new_figure(3, 2).subplots()
    axes.plot([1, 1, 1, 5], [2, 2, 2, 2], "o")
    axes.set_xlim(0, 6)
    spread_markers(axes)
    pixels = axes.transData.transform(markers(axes))[:, 0]
    width = MARKER * axes.figure.dpi / 72
    np.testing.assert_allclose(np.diff(sorted(pixels)[:3]), width)
    np.testing.assert_allclose(markers(axes)[3], [5, 2])


def test_without_anything_free_there_is_one_panel(zoo):
    figure = cost_scatter(zoo[zoo["parameters"] > 0], x="parameters", y="accuracy", x_label="x", y_label="y")
    assert len(figure.axes) == 1
