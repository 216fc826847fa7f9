"""The digest of images: every byte counts, and is read once."""

import dataclasses
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from clipbias.data import digests, files_on_disk, inspection
from clipbias.data.contents import contents
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError
from tests.data.pictures import encoded, picture


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three files, whose digests are kept apart from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded(picture(number, 6, 5)))
    return tmp_path / "images"


def opened(root: Path, reads: list[int] | None = None) -> Split:
    """The files as a split, which notes what is read of it."""
    split = files_on_disk.split_of_files(root, [f"{number}.png" for number in range(3)], [0, 1, 0])

    def read(index: int) -> bytes:
        if reads is not None:
            reads.append(index)
        return split.read(index)

    return Split(split.keys, split.labels, read, split.stamp)


def split_with_path(root: Path, reads: list[int]) -> Split:
    return dataclasses.replace(opened(root, reads), path=lambda index: root / f"{index}.png")


def test_every_byte_and_the_order_count(root: Path) -> None:
    split = opened(root)
    before = contents(split)
    assert contents(opened(root)) == before
    assert contents(split.subset([1, 0, 2])) != before
    assert contents(split.subset([0, 1])) != before
    changed = bytearray((root / "1.png").read_bytes())
    changed[-20] ^= 1  # as long as before
    (root / "1.png").write_bytes(changed)
    assert contents(opened(root)) != before


def test_it_is_the_digest_of_the_digests(root: Path) -> None:
    plain = hashlib.sha256()
    for number in (2, 0):
        plain.update(hashlib.sha256((root / f"{number}.png").read_bytes()).digest())
    assert contents(opened(root).subset([2, 1, 0]).subset([0, 2])) == plain.hexdigest()
    plain.update(b"cannot be read")
    (root / "1.png").unlink()
    assert contents(opened(root).subset([2, 0, 1]), on_error="skip") == plain.hexdigest()


def test_files_that_nobody_touched_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    contents(opened(root, reads))
    contents(opened(root, reads))
    assert sorted(reads) == [0, 0, 1, 1, 2, 2]  # just written: their times would not tell a change
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -1e6)
    reads.clear()
    contents(opened(root, reads).subset([2, 1]))
    assert sorted(reads) == [1, 2]
    first = contents(opened(root, reads))
    assert sorted(reads) == [0, 1, 2]  # only what no draw had
    assert contents(opened(root, reads)) == contents(opened(root, reads)) == first
    assert contents(opened(root, reads).subset([2, 0])) == contents(opened(root).subset([2, 0]))
    assert inspection.unreadable([split_with_path(root, reads)]) == {}
    assert len(reads) == 3
    assert inspection.unreadable([split_with_path(root, reads)], how="all") == {}
    assert len(reads) == 6
    now = time.time_ns()
    replaced = root / "other"
    replaced.write_bytes(bytes(len((root / "0.png").read_bytes())))
    os.utime(replaced, ns=(now, (root / "0.png").stat().st_mtime_ns))  # a copy that keeps size and time
    os.replace(replaced, root / "0.png")
    assert contents(opened(root, reads)) != first
    assert contents(opened(root, reads)) != first
    assert reads[6:] == [0, 0]  # what is not whole is looked at each time
    assert inspection.unreadable([split_with_path(root, reads)]).keys() == {"0.png"}


def test_within_a_process_nothing_is_read_twice(root: Path) -> None:
    reads: list[int] = []
    split = split_with_path(root, reads)
    assert inspection.count([split, split.subset([1, 0]), split.subset([0])]) == 3
    assert inspection.unreadable([split.subset([2]), split.subset([2, 0])]) == {}
    assert contents(split.subset([0, 2])) == contents(opened(root).subset([0, 2]))
    assert inspection.unreadable([split.subset([0])]) == {}
    assert sorted(reads) == [0, 2]
    other = dataclasses.replace(split.subset([0, 2]), read=opened(root, reads).read)
    assert contents(other) == contents(opened(root).subset([0, 1]))  # other images than those it was chosen as


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone"])
def test_kept_digests_that_are_damaged_are_made_again(root: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -1e6)
    first, place = contents(opened(root)), digests.place()
    content = bytearray(place.read_bytes())
    content[60] ^= damage == "bit"
    place.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    if damage == "gone":
        place.unlink()
    reads: list[int] = []
    assert contents(opened(root, reads)) == first and len(reads) == 3
    assert contents(opened(root, reads)) == first and len(reads) == 3


def test_the_oldest_digests_go_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST", 3)
    stamps = np.random.default_rng(0).integers(0, 256, (4, digests.STAMP), np.uint8)
    stamps[3, :8] = stamps[2, :8]  # alike in what they are sorted by
    for number in (0, 1, 2, 3):
        digests.keep(stamps[number : number + 1], np.full((1, digests.DIGEST), number, np.uint8))
    digests.keep(stamps[:0], np.zeros((0, digests.DIGEST), np.uint8))
    found, known = digests.Known().find(stamps)
    assert known.tolist() == [False, True, False, True] and found[known][:, 0].tolist() == [1, 3]


def test_what_cannot_be_read(root: Path) -> None:
    whole = contents(opened(root), on_error="skip")
    assert whole == contents(opened(root))
    (root / "1.png").unlink()
    with pytest.raises(ClipbiasError, match=r"cannot read the image .*1\.png"):
        contents(opened(root))
    assert contents(opened(root), on_error="skip") not in (whole, contents(opened(root).subset([0, 2])))


def test_images_without_files_are_read_each_time() -> None:
    split = Split(("a", "b"), np.zeros(2), lambda index: b"ab"[index : index + 1])
    assert contents(split) == contents(split.subset([0, 1])) != contents(split.subset([1, 0]))
