from pathlib import Path

import pytest

import clipbias
from clipbias.clip import Clip
from tests import helpers


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in Hugging Face format."""
    folder = tmp_path_factory.mktemp("model")
    helpers.tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by the processes of a test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def clip(model: Path) -> Clip:
    """The same, loaded."""
    return clipbias.load(model)
