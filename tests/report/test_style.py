"""Panels draw the numbers of their frames; figures are saved with their words and numbers; imports are light."""

import csv
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

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
