"""What the tests with broken inputs ask of an answer."""

import contextlib
import importlib
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import answers
from tests.fuzz.answers import Late, answered


def test_a_hang_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute() -> None:
        with contextlib.suppress(Exception):
            while True:
                pass

    def wait() -> None:
        with contextlib.suppress(Exception):
            time.sleep(60)

    monkeypatch.setattr(answers, "SECONDS", 0.05)
    with pytest.raises(Late):
        answered(compute, tmp_path)
    monkeypatch.setattr(answers, "WAITING", 0.05)
    with pytest.raises(Late):
        answered(wait, tmp_path)
    time.sleep(0.1)  # and nothing comes late


def test_what_is_written_elsewhere_is_seen_but_not_what_python_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    assert answered(lambda: (inside / "a").write_text("a") and None, inside) is None
    for write in (lambda: (outside / "a").write_text("a"), lambda: (outside / "b").mkdir()):
        with pytest.raises(AssertionError, match="outside"):
            answered(write, inside)
    (outside / "compiled_anew.py").touch()
    monkeypatch.syspath_prepend(outside)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert answered(lambda: importlib.import_module("compiled_anew"), inside) is None
    assert [*outside.glob("__pycache__/*.pyc")]
