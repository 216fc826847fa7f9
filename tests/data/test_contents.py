"""The digest of images: every byte counts, and is read once."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from clipbias import files
from clipbias.data import contents as module
from clipbias.data import files_on_disk
from clipbias.data.contents import contents
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three files, whose digests are kept apart from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(bytes(100) + bytes([number]) + bytes(100))
    return tmp_path / "images"


def opened(root: Path, reads: list[int] | None = None) -> Split:
    """The files as a split, which notes what is read of it."""
    split = files_on_disk.split_of_files(root, [f"{number}.png" for number in range(3)], [0, 1, 0])

    def read(index: int) -> bytes:
        if reads is not None:
            reads.append(index)
        return split.read(index)

    return Split(split.keys, split.labels, read, split.stamp)


def test_every_byte_and_the_order_count(root: Path) -> None:
    split = opened(root)
    before = contents(split)
    assert contents(opened(root)) == before
    assert contents(split.subset([1, 0, 2])) != before
    assert contents(split.subset([0, 1])) != before
    (root / "1.png").write_bytes(bytes(99) + bytes([1, 1]) + bytes(100))  # as long as before
    assert contents(opened(root)) != before


def test_files_that_nobody_touched_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    contents(opened(root, reads))
    contents(opened(root, reads))
    assert sorted(reads) == [0, 0, 1, 1, 2, 2]  # just written: their times would not tell a change
    monkeypatch.setattr(module, "SETTLED_SECONDS", -1e6)
    reads.clear()
    first = contents(opened(root, reads))
    assert sorted(reads) == [0, 1, 2]
    assert contents(opened(root, reads)) == contents(opened(root, reads)) == first
    assert len(reads) == 3
    chosen = opened(root, reads).subset([2, 0])
    assert contents(chosen) == contents(opened(root).subset([2, 0]))
    assert reads[3:] in ([2, 0], [0, 2])
    now = time.time_ns()
    replaced = root / "other"
    replaced.write_bytes((root / "0.png").read_bytes()[::-1].replace(b"\0", b"\2", 1))
    os.utime(replaced, ns=(now, (root / "0.png").stat().st_mtime_ns))  # a copy that keeps the time
    os.replace(replaced, root / "0.png")
    assert contents(opened(root, reads)) != first
    for kept in (files.cache_folder() / "images").rglob("*"):
        if kept.is_file():
            kept.write_text("damaged")
    assert len(contents(opened(root))) == 64


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
