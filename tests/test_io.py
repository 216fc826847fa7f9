"""Files and folders that appear whole or not at all, on disks and in buckets, and the lock of a work folder."""

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load

from clipbias.errors import ClipbiasError
from clipbias.io import (
    PART,
    atomic_folder,
    atomic_path,
    data_path,
    is_locked,
    lock,
    read_json,
    read_json_lines,
    write_tensors,
    write_text,
)
from tests.forks import ROOT


def test_a_file_in_the_making_is_private_and_its_name_cannot_be_guessed(tmp_path):
    target = tmp_path / "new" / "result.json"
    folders = set()
    for text in ("1", "2"):
        with atomic_path(target) as part:
            part.write_text(text)
            folder = part.parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.parent == target.parent and folder.name.startswith(PART)
            folders.add(folder.name)
    assert len(folders) == 2 and os.listdir(target.parent) == ["result.json"] and target.read_text() == "2"
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_tensors_have_the_permissions_of_other_files(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": np.arange(3)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_error_leaves_the_file_before(tmp_path):
    write_text(tmp_path / "a", "before")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as part:
        part.write_text("after")
        raise RuntimeError
    full = pytest.raises(ClipbiasError, match=r"cannot write .*a: No space .*; the previous file, if any, is intact")
    with full, atomic_path(tmp_path / "a"):
        raise OSError(28, os.strerror(28))
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"
    with pytest.raises(ClipbiasError, match=r"cannot write .*; choose another folder"):
        write_text(tmp_path / "a" / "b", "")


def test_a_folder_appears_when_all_is_written(tmp_path):
    final = tmp_path / "new" / "folder"
    with atomic_folder(final) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        assert not final.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "folder", "inner", "a"]
    (tmp_path / "plain").mkdir()
    assert final.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with atomic_folder(tmp_path / "plain") as temporary:  # an empty folder is filled
        (temporary / "b").touch()
    for taken in (tmp_path / "plain", tmp_path / "plain" / "b"):
        with pytest.raises(ClipbiasError, match="exists already"), atomic_folder(taken):
            pass
    with pytest.raises(ClipbiasError, match=r"cannot write"), atomic_folder(tmp_path / "late") as temporary:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "b").touch()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "never") as temporary:
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["late", "new", "plain"]


def test_a_work_folder_is_locked_and_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from clipbias.io import atomic_path, lock\n"
        "with lock(Path(sys.argv[1])), atomic_path(f'{sys.argv[1]}/inner/half') as part:\n"
        "    part.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".lock").symlink_to(tmp_path / "precious")  # a lock that is a link does no harm
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "work"], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert is_locked(tmp_path / "work")
        for shared in (False, True):
            refused = pytest.raises(ClipbiasError, match=r"another process works in .*work")
            with refused, lock(tmp_path / "work", shared=shared):
                pass
        process.send_signal(signal.SIGKILL)
    assert list((tmp_path / "work").rglob("half")) and not is_locked(tmp_path / "work")
    with lock(tmp_path / "work", shared=True), lock(tmp_path / "work", shared=True):
        assert list((tmp_path / "work").rglob("half"))
    with lock(tmp_path / "work"):
        assert os.listdir(tmp_path / "work" / "inner") == []
    assert (tmp_path / "precious").read_text() == "kept"
    (tmp_path / "file").touch()
    with pytest.raises(ClipbiasError, match=r"cannot write .*; choose another --workdir"), lock(tmp_path / "file"):
        pass
    assert not is_locked(tmp_path / "none")


def test_a_torn_line_is_read_past(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": 1}\n[]\n{"a": 2}\n{"a": "\xff')
    assert read_json_lines(tmp_path / "a") == [{"a": 1}, {"a": 2}] and read_json_lines(tmp_path / "none") == []


def test_a_bucket_takes_whole_objects(bucket):
    place = data_path("gs://bucket/work")
    write_text(place / "a.json", '{"a": 1}')
    write_text("gs://bucket/work/b.jsonl", '{"b": 1}\n{"b')
    write_tensors(place / "c.safetensors", {"c": np.arange(3)}, {})
    with atomic_folder(place / "folder") as temporary:
        (temporary / "d").write_text("1")
    assert read_json(place / "a.json") == {"a": 1} and read_json_lines("gs://bucket/work/b.jsonl") == [{"b": 1}]
    assert load((place / "c.safetensors").read_bytes())["c"].tolist() == [0, 1, 2]
    assert (place / "folder" / "d").read_text() == "1" and len(bucket.written) == 4
    with pytest.raises(ClipbiasError, match="exists already"), atomic_folder(place / "folder"):
        pass
    assert read_json_lines(place / "none") == []
    with pytest.raises(ClipbiasError, match=r"cannot read gs://bucket/work/none: No such file"):
        read_json(place / "none")
    with pytest.raises(RuntimeError), atomic_path(place / "a.json") as part:
        part.write_text("half")
        raise RuntimeError
    bucket.refuse_writing = "no quota"
    with pytest.raises(ClipbiasError, match=r"cannot write gs://bucket/work/a.json: no quota"):
        write_text(place / "a.json", "")
    assert read_json(place / "a.json") == {"a": 1}
    with lock(place):  # which does nothing
        pass
