"""Two tiny CLIPs that tests of methods share, so that they share programs too; each with the reference's view of it."""

import pytest

import clipbias
from clipbias.clip import Clip
from tests import helpers
from tests.reference.methods import Reference
from tests.training.conftest import colours

__all__ = ["colours"]
VISION, TEXT = (16, 4, 2), (24, 3, 3)  # width, blocks and heads: of unequal depth, as in ViT-L/14


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Reference]:
    """Towers of unequal width and depth."""
    folder = tmp_path_factory.mktemp("other")
    reference = helpers.tiny_checkpoint(folder, seed=5, vision=VISION, text=TEXT, projection=20)
    return clipbias.load(folder), reference


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Reference]:
    """Images of a few patches, and long texts."""
    folder = tmp_path_factory.mktemp("long")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 3, 2), image_size=8, context_length=64)
    return clipbias.load(folder), reference
