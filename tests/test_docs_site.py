"""The page of the public API: every public name is on it, with a docstring that describes its own arguments."""

import re
from types import SimpleNamespace
from typing import Any

import griffe
import pytest
from mkdocs.config import load_config

from tests.documents import ROOT
from tools.docs_site import on_page_content, packages, public, reference


@pytest.fixture(scope="module")
def tree() -> Any:
    return griffe.load("clipbias", search_paths=[str(ROOT)], docstring_parser="google")


def unknown_arguments(function: Any) -> set[str]:
    """Arguments that a docstring describes and a function does not have; several may share a line."""
    lists = [section.value for section in function.docstring.parsed if section.kind.value == "parameters"]
    described = re.findall(r"\w+", " ".join(f"{item.name} " for items in lists for item in items))
    return set(described) - {parameter.name for parameter in function.parameters}


def functions_of(documented: Any) -> list[Any]:
    """A function, or the documented ones of a class."""
    members = [documented, *documented.members.values()] if documented.is_class else [documented]
    return [member for member in members if member.is_function and member.docstring]


def test_every_name_is_on_the_page_once():
    page = reference()
    identifiers = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(identifiers) == len(set(identifiers)) and set(packages()) <= set(identifiers)
    names = {identifier.rpartition(".")[2] for identifier in identifiers}
    assert {"load", "Task", "relevancy", "CoOp", "BiasTuning", "test_batches"} <= names
    assert {name.rpartition(".")[2] for package in packages() for name in public(package)} <= names


@pytest.mark.parametrize("package", packages())
def test_docstrings_are_there_and_describe_arguments_that_exist(package, tree):
    for value in public(package).values():
        documented = tree[f"{value.__module__}.{value.__qualname__}".removeprefix("clipbias.")]
        assert documented.docstring, f"write a docstring for {documented.path}"
        for function in functions_of(documented):
            assert not unknown_arguments(function), f"{function.path} has no such argument"


def test_a_notebook_offers_to_run_it_where_the_repository_is(monkeypatch):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notebooks/first_hour.ipynb"))
    shown = []
    for repository in ("somebody/clipbias", ""):
        monkeypatch.setenv("GITHUB_REPOSITORY", repository)
        config = load_config(str(ROOT / "mkdocs.yml"))
        shown.append(on_page_content("", page=page, config=config, files=None))
    (link,) = re.findall(r'href="(.*?)"', shown[0])
    repository, path = re.fullmatch(r"https://mybinder.org/v2/gh/(.*)/HEAD\?urlpath=lab/tree/(.*)", link).groups()
    assert repository == "somebody/clipbias" and (ROOT / path).is_file() and shown[1] == ""
