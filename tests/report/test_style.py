"""Panels draw the numbers of their frames; figures are saved with their words and numbers; imports are light."""

import csv
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from clipbias.analysis.results import Average
from clipbias.report import panels as small
from clipbias.report import style
from clipbias.report.pages import CaptionedFigure, write_csv

RED = {"color": "red"}


def frame(**columns):
    return pd.DataFrame({"low": np.nan, "high": np.nan, **columns})


def whiskers(axes, direction):
    """The ends of all whiskers, in the order in which they are drawn."""
    bars = [bar for container in axes.containers for bar in getattr(container, "lines", ((), (), ()))[2]]
    return [tuple(segment[:, direction]) for lines in bars for segment in lines.get_segments()]


@pytest.fixture
def axes():
    return style.new_figure(3, 2).subplots()


def test_arrays_become_rows_with_their_places_and_intervals():
    values = np.arange(6.0).reshape(2, 3)
    table = small.tidy(Average(values, np.full((2, 3), 0.5)), "layer", "head", model="m")
    assert list(table.columns) == ["model", "layer", "head", "value", "low", "high"]
    for row in table.itertuples():
        assert row.value == values[row.layer - 1, row.head - 1] and row.model == "m"
        assert (row.low, row.high) == pytest.approx((row.value - 0.979982, row.value + 0.979982))
    assert small.tidy(values, "layer", "head")[["low", "high"]].isna().all().all()


def test_lines_are_means_of_their_rows_with_whiskers_or_bands(axes):
    part = frame(layer=[1, 1, 2, 2], value=[1.0, 3.0, 4.0, 8.0], low=[0.0, 1, 3, 6], high=[2.0, 5, 5, 10], side="a")
    small.lines(axes, part, x="layer", hue="side", looks={"b": {}, "a": RED}, dots=True)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 1], [1, 3], [2, 4], [2, 8]])
    np.testing.assert_array_equal(axes.containers[0].lines[0].get_xydata(), [[1, 2], [2, 6]])
    np.testing.assert_allclose(whiskers(axes, 1), [(0.5, 3.5), (4.5, 7.5)])
    assert len(axes.containers) == 1
    many = frame(x=range(30), value=1.0, low=0.5, high=2.0)
    small.lines(axes, many, x="x", looks={"": RED})
    band = axes.collections[-1].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (0.5, 2.0)
    small.lines(axes, frame(layer=range(1, 25), value=1.0), x="layer", looks={"": RED})
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "5", "9", "13", "17", "24"]


def test_panels_have_their_part_their_names_and_one_scale():
    part = frame(row=["p", "p", "q"], column=["a", "b", "a"], x=1, value=[1.0, 100.0, 5.0])

    def draw(axes, rows):
        small.lines(axes, rows, x="x", looks={"": {**RED, "marker": "o", "label": "line"}})

    words = {"x_label": "x", "y_label": "y", "names": {"a": "A"}}
    figure = small.panels(part, draw, by=("row", "column"), bottom=0, **words)
    (first, second), (third, empty) = np.reshape(figure.axes, (2, 2))
    shown = [axes.lines[0].get_ydata().tolist() for axes in (first, second, third)]
    assert shown == [[1], [100], [5]] and not empty.axison and not empty.lines
    assert [axes.get_title(loc="left") for axes in (first, second, third)] == ["A", "b", ""]
    assert [axes.get_ylabel() for axes in (first, second, third)] == ["p\ny", "", "q\ny"]
    assert [axes.get_xlabel() for axes in (first, third)] == ["", "x"]
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[0] == 0 and first.get_ylim()[1] > 100
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["line"]
    figure = small.panels(frame(name=list("abc"), x=1, value=1.0), draw, by=("", "name"), wrap=2, legend={"z": RED})
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["z"]


def test_csv_keeps_every_digit_and_leaves_empty_what_is_not_finite(tmp_path):
    values = [*np.random.default_rng(0).normal(size=5), np.nan, np.inf]
    names = [f'a "quoted", {index}' for index in range(7)]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": names, "value": values}))
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "value"] and [name for name, _ in rows] == names
    assert [float(value) for _, value in rows[:5]] == values[:5] and [value for _, value in rows[5:]] == ["", ""]


def drawn():
    with style.styled():
        figure = style.new_figure(2, 1)
        figure.subplots().plot([0, 1], [1, 2])
    return figure


def test_save_writes_three_files_of_one_stem_the_same_bytes_again(tmp_path):
    before = dict(matplotlib.rcParams)
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        paths = CaptionedFigure("fig9.x", "title", "caption", drawn(), pd.DataFrame({"a": [1]})).save(folder)
        assert [path.name for path in paths] == ["fig9.x.pdf", "fig9.x.png", "fig9.x.csv"]
        assert sorted(folder.iterdir()) == sorted(paths)
        assert paths[0].read_bytes()[:5] == b"%PDF-" and paths[1].read_bytes()[:4] == b"\x89PNG"
    first, second = ([path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders)
    assert first == second and style.svg_text(drawn()) == style.svg_text(drawn())
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()  # nor is a figure known to a global list


def test_runs_are_listed_without_a_model_and_a_plotting_library():
    """They are read perhaps while they use the device."""
    heavy = ("jax", "flax", "transformers", "matplotlib", "clipbias.clip", "clipbias.tuning")
    code = f"import sys, clipbias.report, experiments.show\nprint(*{{*{heavy}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
