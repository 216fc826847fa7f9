"""Bugs are planted where the list says, and a test that sees one is named."""

from pathlib import Path

import pytest

from tools import mutate

SOURCE = """def mean(values, axis: int = 0, *, weights=None):
    if weights is not None and len(weights) > 2:
        return total(values, weights, axis=-1) / -len(values)
    return values.sum(axis=0)
"""
CHANGED = (
    ("int = 0", "int = 1"),
    ("is not None and len", "is not None or len"),
    ("if weights is not None and len(weights) > 2", "if not (weights is not None and len(weights) > 2)"),
    ("len(weights) > 2", "len(weights) >= 2"),
    ("> 2", "> 3"),
    ("total(values, weights", "total(weights, values"),
    ("axis=-1)", "axis=-1 - 1)"),
    ("total(values, weights, axis=-1) / -len(values)", "(total(values, weights, axis=-1)) * (-len(values))"),
    ("total(values, weights, axis=-1) / -len(values)", "(total(values, weights, axis=-1))"),
    ("-len(values)", "len(values)"),
    ("sum(axis=0)", "sum(axis=0 + 1)"),
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package of two functions, a test of one of them, and a test that sees nothing."""
    for name, content in {
        "clipbias/__init__.py": "",
        "clipbias/near/mean.py": SOURCE,
        "clipbias/far/average.py": "def average(values):\n    return sum(values) / len(values)\n",
        "tests/far/test_average.py": "from clipbias.far.average import average\n\n\n"
        "def test_mean():\n    assert average([2, 4]) == 3\n",
        "tests/test_nothing.py": "def test_nothing():\n    pass\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_every_bug_is_where_its_kind_can_be() -> None:
    sources = {SOURCE[: bug.start] + bug.new + SOURCE[bug.stop :] for bug in mutate.bugs_in("a.py", SOURCE.encode())}
    assert {SOURCE.replace(old, new) for old, new in CHANGED} <= sources
    for changed in sources:
        compile(changed, "a.py", "exec")


def test_a_seed_draws_the_same_bugs(repository: Path) -> None:
    first, again, other = (mutate.draw(repository, 6, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 6


@pytest.mark.ci
def test_the_test_that_sees_a_bug_is_named(repository: Path) -> None:
    content = (repository / "clipbias/far/average.py").read_bytes()
    seen, unseen = (
        mutate.Bug("clipbias/far/average.py", 2, kind, content.index(old), content.index(old) + len(old), new)
        for kind, old, new in (("sign", b"/", "*"), ("name", b"sum", "sum"))
    )
    assert "tests/far/test_average.py::test_mean" in (mutate.failure(repository, seen, 0) or "")
    assert mutate.failure(repository, unseen, 0) is None
    assert (repository / "clipbias/far/average.py").read_bytes() == content
