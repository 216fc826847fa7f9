"""Panels draw the numbers of their frames; figures are written with them."""

import csv

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from clipbias.report import panels as small
from clipbias.report import style
from clipbias.report.captions import CAPTIONS, CaptionedFigure, captioned, write_csv

RED = {"color": "red"}
BLUE = {"color": "blue"}


def frame(**columns):
    return pd.DataFrame({"low": np.nan, "high": np.nan, **columns})


def whiskers(axes, direction):
    """The ends of all whiskers, in the order in which they are drawn."""
    bars = [bar for container in axes.containers for bar in getattr(container, "lines", ((), (), ()))[2]]
    return [tuple(segment[:, direction]) for lines in bars for segment in lines.get_segments()]


@pytest.fixture
def axes():
    figure = style.new_figure(3, 2)
    return figure.subplots()


def test_arrays_become_rows_with_their_places_and_intervals():
    values = np.arange(6.0).reshape(2, 3)
    error = np.full((2, 3), 0.5)
    table = small.tidy(values, error, ("layer", "head"), {"model": "m"})
    assert list(table.columns) == ["model", "layer", "head", "value", "low", "high"]
    for row in table.itertuples():
        assert row.value == values[row.layer - 1, row.head - 1] and row.model == "m"
        assert (row.low, row.high) == pytest.approx((row.value - 0.98, row.value + 0.98))
    assert small.tidy(values, None, ("layer", "head"), {})[["low", "high"]].isna().all().all()


def test_lines_are_means_of_their_rows_with_whiskers_or_bands(axes):
    part = frame(layer=[1, 1, 2, 2], value=[1.0, 3.0, 4.0, 8.0], low=[0.0, 1, 3, 6], high=[2.0, 5, 5, 10], side="a")
    small.lines(axes, part, x="layer", hue="side", looks={"b": BLUE, "a": RED}, dots=True)
    dots = axes.lines[0]
    line = axes.containers[0].lines[0]
    np.testing.assert_array_equal(dots.get_xydata(), [[1, 1], [1, 3], [2, 4], [2, 8]])
    np.testing.assert_array_equal(line.get_xydata(), [[1, 2], [2, 6]])
    np.testing.assert_allclose(whiskers(axes, 1), [(0.5, 3.5), (4.5, 7.5)])
    assert len(axes.containers) == 1
    many = frame(x=range(30), value=1.0, low=0.5, high=2.0)
    small.lines(axes, many, x="x", looks={"": RED})
    band = axes.collections[-1].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (0.5, 2.0)


def test_bars_have_their_numbers_and_what_is_cut_off_is_marked(axes):
    part = frame(name=["a", "b", "loose", "edge"], value=[1.0, -0.5, -9.0, -0.6])
    part["low"], part["high"] = part["value"] - 0.25, part["value"] + 0.25
    part.loc[3, "low"] = -4.0
    small.bars(
        axes,
        part,
        category="name",
        looks=dict.fromkeys(part["name"], RED),
        text=lambda row: f"{row['value']:g}",
        loose=("loose", "edge"),
    )
    low, high = axes.get_xlim()
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [1, -0.5, low, -0.6])
    assert -9 < low < -0.75 and high > 1.25
    np.testing.assert_allclose(whiskers(axes, 0), [(0.75, 1.25), (-0.75, -0.25), (low, -0.35)])
    breaks = [text for text in axes.texts if text.get_gid() == "break"]
    assert len(breaks) == 1 and breaks[0].get_position()[1] == 2 and low < breaks[0].get_position()[0] < 0
    cuts = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_gid() == "cut"]
    np.testing.assert_allclose(cuts, [(low, 3)])
    assert [text.get_text() for text in axes.texts if text.get_gid() is None] == ["1", "-0.5", "-9", "-0.6"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "loose", "edge"]


def test_a_loose_bar_has_room_where_no_other_goes(axes):
    part = frame(name=["a", "loose"], value=[1.0, -9.0])
    small.bars(axes, part, category="name", looks={"a": RED, "loose": RED}, loose=("loose",))
    assert axes.get_xlim()[0] < -0.15


def test_points_stand_beside_each_other_in_their_place(axes):
    part = frame(name=["a", "b", "b"], side=["x", "x", "y"], value=[1.0, 2.0, 3.0], low=[0.5, 1, 2], high=[2.0, 4, 6])
    small.points(axes, part, category="name", hue="side", looks={"x": RED, "y": BLUE}, places=["a", "none", "b"])
    points = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    np.testing.assert_allclose(points[0], [[1, -0.1], [2, 1.9]])
    np.testing.assert_allclose(points[1], [[3, 2.1]])
    np.testing.assert_allclose(whiskers(axes, 0), [(0.5, 2), (1, 4), (2, 6)])


def grid_of(**options):
    part = frame(row=["p", "p", "q"], column=["a", "b", "a"], x=1, value=[1.0, 100.0, 5.0])

    def draw(axes, rows):
        small.lines(axes, rows, x="x", looks={"": {**RED, "marker": "o", "label": "line"}})

    return small.panels(
        part, draw, by=("row", "column"), layout=small.Layout(x_label="x", y_label="y", names={"a": "A"}, **options)
    )


def test_panels_have_their_part_their_names_and_one_scale():
    figure = grid_of(bottom=0)
    (first, second), (third, empty) = np.reshape(figure.axes, (2, 2))
    shown = [axes.lines[0].get_ydata().tolist() for axes in (first, second, third)]
    assert shown == [[1], [100], [5]] and not empty.axison and not empty.lines
    assert [axes.get_title(loc="left") for axes in (first, second, third)] == ["A", "b", ""]
    assert [axes.get_ylabel() for axes in (first, second, third)] == ["p\ny", "", "q\ny"]
    assert [axes.get_xlabel() for axes in (first, third)] == ["", "x"]
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[0] == 0 and first.get_ylim()[1] > 100
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["line"]


def test_panels_go_on_in_a_second_line():
    part = frame(name=list("abc"), x=1, value=[1.0, 2.0, 3.0])

    def draw(axes, rows):
        small.lines(axes, rows, x="x", looks={"": RED})

    figure = small.panels(part, draw, by=("", "name"), layout=small.Layout(wrap=2), legend={"z": RED})
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["z"]


def test_a_legend_is_no_wider_than_its_figure():
    part = frame(x=1, value=1.0, name=[f"a longer name {number}" for number in range(9)])

    def draw(axes, rows):
        small.lines(axes, rows, x="x", hue="name", looks={name: {**RED, "marker": "o"} for name in rows["name"]})

    figure = small.panels(part, draw, by=("", ""), layout=small.Layout(size=(3.5, 2)))
    figure.draw_without_rendering()
    extent = figure.legends[0].get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_keeps_every_digit_and_leaves_empty_what_is_not_finite(tmp_path):
    values = np.random.default_rng(0).normal(size=5)
    names = [f'a "quoted", {index}' for index in range(5)]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": names, "value": values}))
    head, *rows = read(tmp_path / "a.csv")
    assert head == ["name", "value"] and rows[0][0] == 'a "quoted", 0'
    assert [float(value) for _, value in rows] == values.tolist()
    write_csv(tmp_path / "a.csv", pd.DataFrame({"a": [np.nan, np.inf, 0.5], "b": 1}))
    assert read(tmp_path / "a.csv")[1:] == [["", "1"], ["", "1"], ["0.5", "1"]]


def test_save_writes_three_files_of_one_stem(tmp_path):
    drawing = CaptionedFigure("fig9", "title", "caption", style.new_figure(1, 1), pd.DataFrame({"a": [1]}))
    paths = drawing.save(tmp_path / "figures")
    assert [path.name for path in paths] == ["fig9.pdf", "fig9.png", "fig9.csv"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)


def test_captions_say_what_their_figures_fill_in():
    figure = style.new_figure(1, 1)
    made = captioned("dataset_relevancy", figure, pd.DataFrame(), name="n", what="text", label="IVLP", text="“a”")
    assert (made.name, made.title) == ("n", "Relevancy of text: IVLP") and "Zero-shot's text is “a”." in made.caption
    assert all("\n" not in title and text.strip().endswith((".", "}")) for title, text in CAPTIONS.values())
    with pytest.raises(KeyError):
        captioned("dataset_relevancy", figure, pd.DataFrame(), what="text")
    assert not plt.get_fignums()  # no figure is known to a global list
