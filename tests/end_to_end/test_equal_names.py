"""Two folders of equal class names, file names and file sizes with other pictures, through every command."""

import csv
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias import data
from clipbias.analysis.results_file import ARRAYS, load_arrays, load_results
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, read_json_lines
from clipbias.training.predictions import stored_identity
from clipbias.tuning.adapter import read_adapter
from experiments import distil, explain, predict, table1, train
from tests.end_to_end.conftest import refusal_here, succeed_here, without_seconds
from tests.training.conftest import COLOURS

pytestmark = pytest.mark.ci
RECIPE = {"learning_rate": 0.5, "epochs": 8, "batch_size": 6}
STUDY = {"dataset": "folder", "sections": "vision_attention", "batch_size": 4}
FORM = {"dataset": "folder", "form": "vector", "steps": 2, "batch_size": 4, "checkpoint_seconds": 0.0}


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("done again")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """In the second folder each class has the colour of another class: what is learned of one is wrong of the other."""
    top = tmp_path_factory.mktemp("folders")
    random = np.random.default_rng(5)
    for shift, root in enumerate(("first", "second")):
        for label, name in enumerate("abc"):
            (top / root / name).mkdir(parents=True)
            colour = [*COLOURS.values()][(label + shift) % 3]
            for number in range(12):
                pixels = np.clip(colour + random.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(top / root / name / f"{number}.bmp")
    return top / "first", top / "second"


@pytest.fixture(scope="module")
def run(model: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run on the first folder, with its predictions; not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "first"
    succeed_here(train, settings_of(model, folders[0]), workdir)
    return workdir


def settings_of(model: Path, folder: Path) -> dict[str, Any]:
    return RECIPE | {"model": str(model), "method": "bias", "dataset": "folder", "data_dir": str(folder)}


def accuracies(adapter: Path, folders: tuple[Path, Path]) -> tuple[float, float]:
    """Of the test images of each folder, which must differ for a test to tell them apart."""
    first, second = (clipbias.load_adapter(adapter).evaluate(str(folder)).accuracy for folder in folders)
    assert first != second
    return first, second


def test_train(model, folders, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(train, "run_group", never)
    refusal = refusal_here(train, settings_of(model, folders[1]), tmp_path)
    assert "holds the adapter of a run with other settings (data)" in refusal
    row = read_json(run / "result.json", dict)
    succeed_here(train, settings_of(model, folders[0]), tmp_path)
    assert read_json(tmp_path / "result.json", dict) == row
    assert accuracies(run, folders)[0] == pytest.approx(row["accuracy"])


def test_table1(model, folders, tmp_path):
    """Files of the second sweep have the names of the first, which so is run again: zero-shot, and what is trained."""
    methods = ("zero_shot", "bias")
    grid = RECIPE | {"model": str(model), "datasets": ("folder",), "methods": methods, "shots": (2,), "seeds": (1,)}

    def rows_of(folder: Path, workdir: Path) -> list[dict[str, Any]]:
        succeed_here(table1, grid | {"data_dir": str(folder)}, workdir)
        rows = read_json_lines(workdir / "results.jsonl")
        (adapter,) = (workdir / "adapters").iterdir()
        assert read_adapter(adapter).notes["key"] == rows[1]["key"]
        files = (workdir / "predictions" / f"{row['predictions']['test']}.npz" for row in rows)
        assert [stored_identity(file) for file in files] == [row["identities"]["test"] for row in rows]
        return [without_seconds(row) for row in rows]

    first = rows_of(folders[0], tmp_path / "both")
    second = rows_of(folders[1], tmp_path / "both")
    assert second == rows_of(folders[1], tmp_path / "fresh") != first
    assert rows_of(folders[0], tmp_path / "both") == first


@pytest.mark.filterwarnings("ignore:the pictures or classes of folder have changed")
def test_explain(folders, run, tmp_path):
    """The predictions of the run lie beside its adapter, and the sums of a study in its folder."""
    expected = accuracies(run, folders)
    for name, number in (("both", 0), ("both", 1), ("fresh", 1)):
        settings = STUDY | {"adapters": str(run), "data_dir": str(folders[number])}
        _, progress = succeed_here(explain, settings, tmp_path / name)
        results = load_results(tmp_path / name)
        assert results.models[1].accuracy == pytest.approx(expected[number])
        assert progress.count("predictions read from an evaluation") == (1 if number == 0 else 0)  # the adapter's
    both, fresh = (load_arrays(tmp_path / name / ARRAYS) for name in ("both", "fresh"))
    assert list((tmp_path / "both" / "parts").iterdir())
    jax.tree.map(np.testing.assert_array_equal, both, fresh)


def test_distil(folders, run, tmp_path, monkeypatch):
    def stop(*_: Any) -> Any:
        raise ClipbiasError("the disk is full.")

    def learnables(number: int, name: str) -> dict[str, np.ndarray]:
        files = {"adapters": str(run), "data_dir": str(folders[number]), "output": str(tmp_path / f"{name}-{number}")}
        succeed_here(distil, FORM | files, tmp_path / name)
        return read_adapter(tmp_path / f"{name}-{number}").learnables

    with monkeypatch.context() as patched:  # after the fit, whose checkpoint stays
        patched.setattr(distil, "export", stop)
        files = {"adapters": str(run), "data_dir": str(folders[0]), "output": str(tmp_path / "both-0")}
        assert "the disk is full" in refusal_here(distil, FORM | files, tmp_path / "both")
    second = learnables(1, "both")
    jax.tree.map(np.testing.assert_array_equal, second, learnables(1, "fresh"))
    first = learnables(0, "both")
    assert any((first[name] != second[name]).any() for name in first)
    # A certificate is of its test images, which no form was fitted on.
    changed = tmp_path / "changed"
    shutil.copytree(folders[1], changed)
    files = {"adapters": str(run), "data_dir": str(changed), "output": str(tmp_path / "certified")}
    succeed_here(distil, FORM | files, tmp_path / "both")
    Image.new("RGB", (30, 30)).save(data.load("folder", data_dir=changed).split("test").path(0))
    assert "certified exists already" in refusal_here(distil, FORM | files, tmp_path / "both")


def test_predict(folders, run, tmp_path, monkeypatch):
    """A line of a table is of one file, from whatever folder the command is run."""

    def lines(folder: Path, images: str, name: str) -> list[list[str]]:
        monkeypatch.chdir(folder)
        output = tmp_path / f"{name}.csv"
        succeed_here(predict, {"adapters": str(run), "images": images, "output": str(output)}, tmp_path / name)
        with open(output, newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]

    fresh = [lines(folder, str(folder / "a"), f"fresh{number}") for number, folder in enumerate(folders)]
    assert len(fresh[0]) == 12 and [line[1:] for line in fresh[0]] != [line[1:] for line in fresh[1]]
    lines(folders[0], str(folders[0] / "a"), "both")
    assert lines(folders[0], str(folders[1] / "a"), "both") == fresh[0] + fresh[1]
    lines(folders[0], "a", "relative")
    assert lines(folders[1], "a", "relative") == fresh[0] + fresh[1]
