"""The page of the public API: every public name is on it, and a docstring that cannot be rendered is refused."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from clipbias.data import sources
from clipbias.errors import ClipbiasError
from tools import make_api_reference
from tools.make_api_reference import packages, public, reference


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The package is read from disk once for all tests."""
    read, found = make_api_reference.griffe.load, []

    def once(*arguments: Any, **options: Any) -> Any:
        found[:] = found or [read(*arguments, **options)]
        return found[0]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(make_api_reference.griffe, "load", once)
        yield


@pytest.fixture(scope="module")
def page() -> str:
    return reference()


def test_every_name_has_its_arguments_and_errors(page: str) -> None:
    headings = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("### ")}
    assert {"load", "Task", "relevancy", "CoOp", "BiasTuning", "test_batches"} <= headings
    for package in packages():
        assert f"## {package}\n\n" in page
        assert set(public(package)) <= headings
    load = page.partition("### clipbias.data.load\n")[2].partition("\n### ")[0]
    assert "- `data_dir`: Where the images are." in load and "**Raises**" in load
    assert '| "folder" | one folder per class' in load


@pytest.mark.parametrize("package", packages())
def test_what_is_public_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))
    assert all(callable(value) for value in public(package).values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nmae: Which dataset.", "clipbias.data.sources.load has no argument 'nmae'"),
        ("Which dataset.", "cannot be rendered"),
    ],
)
def test_a_docstring_that_cannot_be_rendered_is_refused(line: str, message: str, monkeypatch) -> None:
    read = make_api_reference.griffe.load

    def changed(*arguments, **options):
        tree = read(*arguments, **options)
        function = tree["data.sources.load"]
        before = function.docstring
        about = {name: getattr(before, name) for name in ("lineno", "endlineno", "parent", "parser", "parser_options")}
        text = before.value.replace("name: Which dataset.", line)
        monkeypatch.setattr(function, "docstring", make_api_reference.griffe.Docstring(text, **about))
        return tree

    assert "name: Which dataset." in sources.load.__doc__
    monkeypatch.setattr(make_api_reference.griffe, "load", changed)
    with pytest.raises(ClipbiasError, match=message):
        reference()
