from pathlib import Path

import pytest

import clipbias
from clipbias.clip import Clip
from tests import helpers


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in float32."""
    folder = tmp_path_factory.mktemp("source")
    helpers.tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def clip(source: Path) -> Clip:
    return clipbias.load(source)


@pytest.fixture(scope="session")
def demo() -> Clip:
    """The embedded model, whose weights are stored in float16."""
    return clipbias.load("demo")
