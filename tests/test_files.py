"""Folders that appear whole or not at all, also when their writer is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.folders import LOCK, atomic_folder

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder"
    with atomic_folder(final) as temporary:
        (temporary / "a").write_text("1")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["a"]
    assert [path.name for path in final.parent.iterdir()] == ["folder"]


def test_an_empty_folder_is_filled_and_any_other_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "a").write_text("1")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "a"):
        with pytest.raises(ClipbiasError, match="exists already"), atomic_folder(taken):
            pass
    assert (tmp_path / "empty" / "a").read_text() == "1"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        raise RuntimeError("in the middle")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ClipbiasError, match="cannot write"), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "b").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "b"]


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        with pytest.raises(ClipbiasError, match="another process writes"), atomic_folder(tmp_path / "folder"):
            pass
    assert (tmp_path / "folder" / "a").read_text() == "1"


def test_what_a_killed_writer_left_is_cleaned_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from clipbias.folders import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'inner').mkdir()\n"
        "    (folder / 'inner' / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "folder")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "folder").exists()
    assert list(tmp_path.rglob("half"))
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "folder"]


def test_what_others_left_under_the_temporary_name_is_not_touched(tmp_path: Path) -> None:
    """The name can be foreseen: a link there, or a folder that is somebody's own, must not cost its content."""
    (tmp_path / "important").mkdir()
    (tmp_path / "important" / "precious").write_text("1")
    temporary = tmp_path / ".out.unfinished"
    temporary.symlink_to("important")
    with (
        pytest.raises(ClipbiasError, match=r"\.out\.unfinished is in the way .*; remove it"),
        atomic_folder(tmp_path / "out"),
    ):
        pass
    (tmp_path / "important" / LOCK).touch()  # a link to a folder in the making is none
    with pytest.raises(ClipbiasError, match="is in the way"), atomic_folder(tmp_path / "out"):
        pass
    temporary.unlink()
    (tmp_path / "important" / LOCK).unlink()
    (tmp_path / "important").rename(temporary)
    with pytest.raises(ClipbiasError, match="is in the way"), atomic_folder(tmp_path / "out"):
        pass
    assert (temporary / "precious").read_text() == "1"
    (temporary / "precious").rename(tmp_path / "precious")
    temporary.rmdir()
    temporary.write_text("a file")
    with pytest.raises(ClipbiasError, match="is in the way"), atomic_folder(tmp_path / "out"):
        pass
    assert temporary.read_text() == "a file" and not (tmp_path / "out").exists()


def test_a_folder_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / LOCK).touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ClipbiasError, match="is in the way"), atomic_folder(tmp_path / "out"):
        pass


def test_links_among_what_a_killed_writer_left_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "important").mkdir()
    (tmp_path / "important" / "precious").touch()
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / LOCK).touch()
    (left / "link").symlink_to(tmp_path / "important")
    with atomic_folder(tmp_path / "out") as temporary:
        assert [path.name for path in temporary.iterdir()] == [LOCK]
    assert (tmp_path / "important" / "precious").exists()


def test_a_folder_is_private_until_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
