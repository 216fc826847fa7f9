"""What is kept of folders is what the system lists, whatever happened to them since."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipbias import data
from clipbias.data import listings
from clipbias.data.files_on_disk import image_files
from clipbias.errors import ClipbiasError
from tests.data import miniatures


@pytest.fixture
def scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed by the system, where small sets are kept, too, and folders that were just changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listings, "FEWEST", 1)
    monkeypatch.setattr(listings, "SETTLED_SECONDS", -1e6)
    found, original = [], listings._scan

    def noted(place: str) -> tuple[list[str], list[str]]:
        found.append(os.path.basename(place.rstrip("/")))
        return original(place)

    monkeypatch.setattr(listings, "_scan", noted)
    return found


def fill(root: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.jpg", "b/in/1.jpg", "b/in/deep/é.png", "c/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def opened(root: Path) -> dict[str, list[str]]:
    """What the dataset lists, equal to what each folder is listed as without anything kept."""
    splits = data.load("folder", data_dir=root).splits.values()
    found = sorted(key for split in splits for key in split.keys)
    kept, listings._read = listings._read, lambda path: {}
    try:
        plain = [f"{folder}/{name}" for folder in sorted(os.listdir(root)) for name in image_files(root / folder)]
    finally:
        listings._read = kept
    assert found == sorted(plain)
    return found


def test_only_folders_that_changed_are_listed_again(tmp_path: Path, scanned: list[str]) -> None:
    root = tmp_path / "images"
    fill(root)

    def listed_now() -> list[str]:
        scanned.clear()
        data.load("folder", data_dir=root)
        found = sorted(scanned)
        opened(root)
        return found

    assert listed_now() == ["a", "b", "c", "deep", "in"]
    assert listed_now() == []
    (root / "b" / "in" / "deep" / "new.png").touch()
    assert listed_now() == ["deep"]
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    (root / "c" / "y").mkdir()
    (root / "c" / "y" / "1.png").touch()
    assert listed_now() == ["a", "c", "y"]
    (root / "a" / "1.png").unlink()
    shutil.rmtree(root / "b" / "in")
    assert listed_now() == ["a", "b"]
    shutil.move(root / "a", root / "d")
    (root / "a").mkdir()
    (root / "a" / "other.png").touch()
    assert listed_now() == ["a", "d"]
    (root / "a" / "other.png").write_bytes(b"content")  # of the same name
    assert listed_now() == []


def test_both_parts_of_imagenet_are_kept(tmp_path: Path, scanned: list[str]) -> None:
    miniatures.make(tmp_path, "imagenet")
    first = data.load("imagenet", data_dir=tmp_path)
    assert len(scanned) == 2 * len(first.class_names)
    again = data.load("imagenet", data_dir=tmp_path)
    assert len(scanned) == 2 * len(first.class_names)
    assert all(again.splits[name].keys == split.keys for name, split in first.splits.items())


@pytest.mark.parametrize("damage", ["cut", "text", "stamps", "lengths"])
def test_what_is_damaged_is_not_believed(tmp_path: Path, scanned: list[str], damage: str) -> None:
    root = tmp_path / "images"
    fill(root)
    opened(root)
    (path,) = (tmp_path / "cache" / "clipbias" / "listings").glob("*.npz")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "text":
        path.write_bytes(b"no archive")
    else:
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays[damage] = arrays[damage][:-1] if damage == "stamps" else arrays[damage] - 1
        np.savez(path, **arrays)
    opened(root)


def test_recent_changes_and_small_sets_are_not_kept(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    fill(root)
    monkeypatch.setattr(listings, "FEWEST", 7)
    opened(root)
    assert not (tmp_path / "cache" / "clipbias" / "listings").exists()
    monkeypatch.setattr(listings, "FEWEST", 6)
    monkeypatch.setattr(listings, "SETTLED_SECONDS", 1e6)
    opened(root)
    assert not (tmp_path / "cache" / "clipbias" / "listings").exists()


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def broken(place: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listings, "_scan", broken)
    with pytest.raises(ClipbiasError, match=r"cannot read the folder .*/a/: Permission denied; check its permissions"):
        data.load("folder", data_dir=tmp_path)
