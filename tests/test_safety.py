"""What comes from elsewhere is data: nothing in it is run, nothing in it steers a terminal, no path in it climbs.

That no code unpickles or runs a text is ruff's to say (`pyproject.toml`).
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from clipbias.analysis.results_file import load_arrays
from clipbias.data import transforms
from clipbias.data.files import check_relative, read_image
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, read_json_lines, write_text
from clipbias.report import pages
from clipbias.terminal import printable
from clipbias.training.progress import Progress
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned
from experiments import common
from tests import helpers
from tests.tuning.test_registry import CLASS

HOSTILE = "\x1b]0;owned\x07\x1b[2Jcat\r\n\u202egod\ud800"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_objects_in_an_archive_are_refused(tmp_path):
    np.savez(tmp_path / "results.npz", a=np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    with pytest.raises(ClipbiasError, match=r"results\.npz is damaged .*allow_pickle=False"):
        load_arrays(tmp_path / "results.npz")
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ClipbiasError, match=r"bare\.npz is damaged"):
        load_arrays(tmp_path / "bare.npz")
    assert not (tmp_path / "sprung").exists()


OWN = f"{CLASS}\nfrom pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def test_an_adapter_does_not_choose_what_is_run(clip, tmp_path):
    program, ran = tmp_path / "match_user_method.py", tmp_path / "ran"
    program.write_text(OWN)
    task = Task(clip, str(program), ("a", "b"))
    write_adapter(tmp_path / "own.safetensors", Tuned(task))
    ran.unlink()
    adapter = read_adapter(tmp_path / "own.safetensors")
    with pytest.raises(ClipbiasError, match=r"name it yourself, with --config\.own_methods"):
        adapter.bind(clip)
    with pytest.raises(ClipbiasError, match="name it yourself"):
        adapter.bind(clip, own_methods=("another.py", "bias"))
    assert not ran.exists()
    # Where it lies is the user's word, not the file's.
    moved = tmp_path / "mine" / "match_user_method.py"
    moved.parent.mkdir()
    program.rename(moved)
    assert adapter.bind(clip, own_methods=(str(moved),)).class_names == ("a", "b")
    assert (moved.parent / "ran").exists() and not ran.exists()


@pytest.mark.parametrize("method", ["antigravity", "os:system", "/etc/passwd.py", "a\0.py"])
def test_no_module_is_imported_for_an_adapter(clip, tmp_path, method):
    task = Task(clip, "bias", ("a", "b"))
    path = tmp_path / "a.safetensors"
    write_adapter(path, Tuned(task, task.init()))
    with safetensors.safe_open(path, "numpy") as file:
        header = helpers.adapter_header(file.metadata()) | {"method": method}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {"clipbias": json.dumps(header)})
    before = set(sys.modules)
    with pytest.raises(ClipbiasError, match="not run just because a file names it"):
        read_adapter(path).bind(clip)
    assert set(sys.modules) == before


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\x", "a\0b", "..", "a/.."])
def test_listed_paths_stay_below_their_folder(path):
    with pytest.raises(ClipbiasError, match="not a plain path below the image folder"):
        check_relative(path, listed_in="list.json")


def test_no_other_program_decodes_an_image(monkeypatch):
    def refused(*arguments: object, **_: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(os, "system", refused)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ClipbiasError, match=r"the image x\.jpg cannot be decoded \(cannot identify image file"):
        transforms.decode_picture(postscript, "x.jpg")
    with pytest.raises(ClipbiasError, match=r"x\.jpg is not an image"):
        transforms.check_format(b"root:x:0:0:root:/root:/bin/bash\n", "x.jpg")


def test_names_do_not_steer_a_terminal(capsys):
    shown = printable(HOSTILE)
    assert shown == r"\x1b]0;owned\x07\x1b[2Jcat\r\n\u202egod\ud800"
    assert printable("Katze 猫 🐈 é") == "Katze 猫 🐈 é"
    assert str(ClipbiasError(f"no class {HOSTILE}")) == f"no class {shown}".replace(r"\n", "\n")
    common.tell(HOSTILE, "second")
    bar = Progress(2, title=HOSTILE)
    bar.advance(2, {"dataset": HOSTILE})
    bar.say(HOSTILE)
    bar.close()
    written = capsys.readouterr()
    assert written.out == f"{shown}\nsecond\n"
    assert written.err.count(shown) == 4  # the title twice, the value, and what is said
    assert not any(ord(letter) < 32 and letter != "\n" for letter in written.err)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    (tmp_path / "zero.png").symlink_to("/dev/zero")  # reading it would never end
    with pytest.raises(ClipbiasError, match=r"cannot read the image .*: it is not a file"):
        read_image(tmp_path / "zero.png")
    reads = {"a.safetensors": read_adapter, "b.npz": load_arrays, "c.json": read_json, "d.jsonl": read_json_lines}
    for name, read in reads.items():
        os.mkfifo(tmp_path / name)  # this would wait for ever
        (tmp_path / f"circle{name}").symlink_to(f"circle{name}")
        with pytest.raises(ClipbiasError, match=r"is a pipe, a socket or a device|no adapter file"):
            read(tmp_path / name)
        with pytest.raises(ClipbiasError, match="Too many levels of symbolic links"):
            read(tmp_path / f"circle{name}")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # nothing is closed to the user tests may run as
    with pytest.raises(ClipbiasError, match=r"cannot read .*a\.safetensors: Permission denied; check its permissions"):
        read_adapter(tmp_path / "a.safetensors")


def test_what_a_page_cannot_hold_becomes_its_escape(tmp_path):
    shown = pages.render("tables", title="\0<b>\x1b\ud800'\n", svg=None, tables=(), failures=(), empty="")
    assert r"<h1>\x00&lt;b&gt;\x1b\ud800&#39;" + "\n</h1>" in shown
    write_text(tmp_path / "a", "half a pair: \ud83d")
    assert (tmp_path / "a").read_text() == r"half a pair: \ud83d"
