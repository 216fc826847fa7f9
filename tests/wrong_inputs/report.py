"""Damaged work folders and results, wrong maps, and places that cannot be written to."""

import json

from clipbias.report import style, write_report
from clipbias.report.runs import read_workdir
from experiments.prediction_table import open_table
from tests.report.test_runs import TRAIN
from tests.wrong_inputs.place import Case, Place, case


@case
def workdir(place: Place, config: str = "", **files: bytes) -> None:
    """A folder with a configuration and other files."""
    for name, content in {"config.json": config.encode(), **files}.items():
        if content:
            (place.tmp_path / name).write_bytes(content)
    read_workdir(place.tmp_path)


@case
def table(place: Place, content: str, name: str = "a.csv", **facts: str) -> None:
    """A table that is to be continued, with what was written beside it."""
    (place.tmp_path / "a.csv").write_text("image\nb.png\n")
    if content:
        (place.tmp_path / "a.csv.json").write_text(content)
    with open_table(str(place.tmp_path / name), ("image",), facts):
        pass


def circle(place: Place) -> None:
    (place.tmp_path / "circle").symlink_to("circle")
    read_workdir(place.tmp_path / "circle")


CASES: list[Case] = [
    workdir("is not the work folder of a run"),
    workdir(r"config\.json is not a JSON file \(not valid JSON, line 1", "{"),
    workdir(r"result\.json is not a JSON file", json.dumps(TRAIN), **{"result.json": b"\x00"}),
    ("there is no folder", lambda place: read_workdir(place.tmp_path / "nowhere")),
    table(r"a\.csv is no table to continue: a\.csv\.json is not beside it; choose another file", ""),
    table(r"a\.csv has lines of other settings \(adapter\); choose another", '{"columns": ["image"]}', adapter="a"),
    table(r"give a file that ends with \.csv", "", "a.txt"),
    ("Too many levels of symbolic links", circle),
    (r"holds no results\.json", lambda place: write_report(place.tmp_path, place.tmp_path)),
    ("cannot write", lambda place: style.save_figure(style.new_figure(2, 1), place.model / "config.json" / "figure")),
]
