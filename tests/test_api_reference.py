"""The page of the public API: as its tool makes it, and with every name that packages offer."""

import importlib

import pytest

from tests.documents import ROOT
from tools.make_api_reference import PUBLIC, reference


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m tools.make_api_reference docs/api.md"


@pytest.mark.parametrize("part", PUBLIC)
def test_every_name_is_there(part: str) -> None:
    package = importlib.import_module(part)
    offered = [name for name in getattr(package, "__all__", ()) if not isinstance(getattr(package, name), dict | tuple)]
    assert set(offered) <= {*PUBLIC[part], *PUBLIC["clipbias"], "Learnables"}
    for name in PUBLIC[part]:
        module, _, attribute = f"{part}.{name}".rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
