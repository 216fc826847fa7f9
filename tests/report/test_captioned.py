"""Figures with their numbers: files, CSV values, names."""

import csv

import numpy as np
import pytest

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, write_csv


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_round_trip_keeps_every_digit(tmp_path):
    values = np.random.default_rng(0).normal(size=5).astype(np.float64)
    write_csv(
        tmp_path / "a.csv", ("name", "value"), [(f'a "quoted", {index}', value) for index, value in enumerate(values)]
    )
    head, *rows = read(tmp_path / "a.csv")
    assert head == ["name", "value"]
    assert [float(value) for _, value in rows] == values.tolist()
    assert rows[0][0] == 'a "quoted", 0'


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), np.float32("nan")])
def test_what_is_not_finite_is_left_empty(tmp_path, value):
    write_csv(tmp_path / "a.csv", ("a", "b"), [(value, 1)])
    assert read(tmp_path / "a.csv")[1] == ["", "1"]


def test_save_writes_three_files_of_one_stem(tmp_path):
    with style.styled():
        figure = style.new_figure(1, 1)
    paths = CaptionedFigure("fig9", "title", "caption", figure, ("a",), ((1,),)).save(tmp_path / "figures")
    assert [path.name for path in paths] == ["fig9.pdf", "fig9.png", "fig9.csv"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)
