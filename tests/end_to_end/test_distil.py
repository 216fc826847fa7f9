"""`clipbias distil` as a user runs it, on a tiny model and images of noise."""

from pathlib import Path
from typing import Any

import pytest

import experiments.distil
from tests.end_to_end.binaries import refusal_here, succeed_here

SETTINGS = {"dataset": "folder", "form": "vector", "steps": 2, "batch_size": 4, "checkpoint_seconds": 0.0}


def never(*_: object) -> Any:
    raise AssertionError("a form was fitted")


@pytest.fixture
def settings(adapters: list[str], model: Path, images: Path, tmp_path: Path) -> dict[str, Any]:
    """Of a command with six training and six test images."""
    files = {"adapters": adapters[0], "model": str(model), "data_dir": str(images), "output": str(tmp_path / "out")}
    return SETTINGS | files


@pytest.mark.ci
def test_the_same_command_is_done_and_others_are_refused_before_a_fit(settings, tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    printed, said = succeed_here(experiments.distil, settings, work)
    assert f"the result is written to {out}, everything else to {work}" in said
    assert f"{out} holds it as a checkpoint." in printed
    assert not list((work / "checkpoints").iterdir())
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(experiments.distil, "distil_model", never)
    again, _ = succeed_here(experiments.distil, settings, work)
    assert again == printed.replace("as a checkpoint", "already; this command was finished before")
    assert f"{out} exists already" in refusal_here(experiments.distil, settings | {"steps": 3}, work)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_a_folder_that_holds_something_else_is_refused_before_a_fit(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.distil, "distil_model", never)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert "out exists already" in refusal_here(experiments.distil, settings, tmp_path / "work")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
