"""Docstrings and comments are wrapped where their lines are full, in every Python file; and the finder finds those that
are not, and nothing else."""

import ast
import textwrap

import pytest

from tests.documents import ROOT
from tools.wraps import WIDTH, files_in, fill, found

FOLDERS = ("clipbias", "configs", "experiments", "tools", "tests")
LONG = "Every array that belongs to a run has a leading axis; the runs are vectorised and share the frozen weights that"


def test_no_paragraph_of_this_project_is_broken() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{paragraph.first}"
        for path in files_in(ROOT / folder for folder in FOLDERS)
        for paragraph in found(path.read_text(encoding="utf-8"))
    ]
    assert not places, "run python -m tools.wraps --fill, and shorten summaries by hand: " + " ".join(places)


START = '"""A summary.\n\n'
BROKEN = {
    "a word alone before more": f'{START}{LONG} a\nstep\nreads, and none that it\nreads not.\n"""',
    "a short last line": f'{START}The part after the colon is a file, without one; its options are\nelsewhere.\n"""',
    "a torn line": f'{START}{LONG} a\n  step\nreads, once for all of them, in the order of their coming.\n"""',
    "a torn line after a name": f'{START}Text: {LONG} a\n  step\nreads for all.\n"""',
    "a long summary": f'"""{LONG} a\nstep reads."""',
    "an argument": f'def f():\n    """A summary.\n\n    Args:\n      a: {LONG[:60]}\n        a\n        step.\n    """',
    "a comment": "# The copy keeps Pillow from seeing pixels outside of the box, for it would reach\n# them.\nx = 1",
    "an indented comment": "if x:\n    # The copy keeps Pillow from\n    # seeing pixels outside.\n    pass",
}
FULL = {
    "a full paragraph": f'{START}{LONG} a\nstep of any of these reads, once for all of them.\n"""',
    "a narrow one": '"""A summary.\n\n'
    + textwrap.fill(f"{LONG} a step reads. {LONG} another step reads.", 80)
    + '\n"""',
    "a list": '"""A summary.\n\n- one\n- two\n* three\n1. four\n"""',
    "arguments": 'def f():\n    """A summary.\n\n    Args:\n      a: one.\n      b, c: two.\n      **d: no.\n    """',
    "code": '"""A summary.\n\n    x = 1\n    y = 2\n\n    print(x,\n        y)\n"""',
    "commands": '"""A summary.\n\n    python -m a --b\n    python -m c\n"""',
    "a table": '"""A summary.\n\n| a | b |\n| --- | --- |\n| c | d |\n"""',
    "columns": '"""A summary.\n\none  what it is\ntwo  what it is\n"""',
    "what is announced": '"""A summary:\nin the next line.\n"""',
    "a comment at the end of a line": "x = 1  # one\ny = 2  # two",
    "a text": 'x = """One\ntwo\nthree"""',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_paragraph_is_found_and_filled(case: str) -> None:
    source = BROKEN[case] + "\n"
    assert len(found(source)) == 1
    new = fill(source)
    ast.parse(new)
    assert max(map(len, new.splitlines())) <= WIDTH
    assert new.replace("#", "").split() == source.replace("#", "").split()
    assert bool(found(new)) == (case == "a long summary")  # which needs other words


@pytest.mark.parametrize("case", FULL)
def test_what_is_meant_is_left(case: str) -> None:
    assert found(FULL[case] + "\n") == []
    assert fill(FULL[case] + "\n") == FULL[case] + "\n"


def test_an_empty_file_stays_empty() -> None:
    assert fill("") == ""
