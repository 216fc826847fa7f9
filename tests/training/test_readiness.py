"""Datasets are looked at before anything is trained; what is wrong is told once."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipbias.clip import Clip
from clipbias.data import Dataset, folder
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training import readiness
from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.settings import GridSettings
from clipbias.tuning.recipe import Recipe

RECIPE = Recipe(
    learning_rate=0.1,
    epochs=1,
    warmup_epochs=0,
    warmup_learning_rate=0.1,
    batch_size=4,
    momentum=0.9,
    weight_decay=0.0,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three datasets of two classes."""
    for name in ("one", "two", "three"):
        for split in ("train", "val", "test"):
            for label, own in enumerate(("cat", "dog")):
                (tmp_path / name / split / own).mkdir(parents=True)
                for index in range(2):
                    pixels = np.random.default_rng([label, index]).integers(0, 255, (9, 9, 3), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / name / split / own / f"{index}.png")
    return tmp_path


def opener(root: Path) -> Callable[[str], Dataset]:
    def load(name: str) -> Dataset:
        return dataclasses.replace(folder.load(root / name), name=name)

    return load


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def grid_of(clip: Clip, root: Path, *names: str, **settings: Any) -> tuple[Grid, list]:
    facts: dict[str, Any] = dict(method_options={}, dtype="float32", eval_batch_size=4, checkpoint_seconds=60.0)
    made = GridSettings(**{**facts, "on_image_error": "raise", **settings})
    grid = Grid(clip, RECIPE, made, opener(root), root / "work", mesh=meshes.make_mesh(run=1, data=1))
    return grid, make_packs(["zero_shot", "bias"], names, [1], [1], options={})


def test_nothing_is_trained_and_all_is_told_once(clip: Clip, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(root / "two" / "test" / "dog" / "1.png")
    grid, packs = grid_of(clip, root, "one", "two", "three", "nowhere")
    monkeypatch.setattr(grid.trainer, "train", lambda pack: pytest.fail("trained"))
    with pytest.raises(ClipbiasError) as refused:
        grid.run(packs)
    said = str(refused.value)
    assert said.startswith("2 of 4 datasets cannot be used, and nothing was begun; mend them, or run the others with ")
    assert said.count("nowhere") == 2 and said.count("test/dog/1.png") == 1  # a cell, and the path that is not there
    assert "check data_dir" in said and "--config.on_image_error=skip" in said
    assert len(said.splitlines()) < 12 and said.index("\nnowhere") < said.index("\ntwo")  # what is not there first


def test_the_rest_is_run_where_that_is_asked_for(
    clip: Clip, root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(root / "two" / "test" / "dog" / "1.png")
    grid, packs = grid_of(clip, root, "one", "two", on_missing="skip")
    ran: list[str] = []

    def attempt(pack: Any, bar: Any) -> list:
        ran.append(pack.dataset)
        return []

    monkeypatch.setattr(grid, "_attempt", attempt)
    assert grid.run(packs) == []
    assert ran == ["one", "one"]
    assert "2 of 4 programs are left out" in capsys.readouterr().err
    grid, packs = grid_of(clip, root, "two", "nowhere", on_missing="skip")
    with pytest.raises(ClipbiasError, match=r"^2 of 2 datasets cannot be used, and nothing was begun; mend them\.\n"):
        grid.run(packs)  # none is left


def test_one_dataset_is_told_in_one_sentence(clip: Clip, root: Path) -> None:
    damage(root / "one" / "train" / "cat" / "0.png")
    damage(root / "one" / "train" / "cat" / "1.png")
    grid, packs = grid_of(clip, root, "one")
    with pytest.raises(ClipbiasError, match=r"^one: the image train/cat/\d.png cannot be read \(.*\); replace what"):
        grid.run(packs)  # of the two only the one that is drawn
    grid, packs = grid_of(clip, root, "none")
    with pytest.raises(ClipbiasError, match=r"^dataset folder: there is no folder .*none; check data_dir\.$"):
        grid.run(packs)


def test_images_that_may_be_left_out_stop_nothing_unless_none_is_left(
    clip: Clip, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0", "1"):
        damage(root / "one" / "test" / "dog" / f"{name}.png")
    grid, packs = grid_of(clip, root, "one", on_image_error="skip")
    monkeypatch.setattr(grid, "_attempt", lambda pack, bar: [])
    assert grid.run(packs) == []
    for name in ("0", "1"):
        damage(root / "one" / "test" / "cat" / f"{name}.png")
    grid, packs = grid_of(clip, root, "one", on_image_error="skip")
    with pytest.raises(ClipbiasError, match=r"^one: no test image can be read; put the images there\.$"):
        grid.run(packs)
    grid, packs = grid_of(clip, root, "one", check_images="none")
    monkeypatch.setattr(grid, "_attempt", lambda pack, bar: [])
    assert grid.run(packs) == []  # as it was asked for


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"one": ["test"], "two": ["test"]}, "1 of 2 datasets cannot be used"),
        ({"two": ["test"]}, r"^two: the image test/dog/1\.png cannot be read"),
        ({"two": ["training"]}, "^two has no training images; it has test, train, val"),
    ],
)
def test_what_a_study_needs(root: Path, wanted: Mapping[str, list[str]], message: str) -> None:
    damage(root / "two" / "test" / "dog" / "1.png")
    with pytest.raises(ClipbiasError, match=message):
        readiness.require(opener(root), wanted)
    readiness.require(opener(root), {"two": ["train"]})
    readiness.require(opener(root), {"two": ["test"]}, skip=True)
