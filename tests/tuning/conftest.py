"""Tiny CLIPs that tests of methods share, so that they share programs too; each with the reference's view of it."""

from collections.abc import Callable
from typing import Any

import pytest

from clipbias.clip import Clip
from tests.reference.methods import Reference
from tests.training.conftest import colours

__all__ = ["colours"]
VISION, TEXT = (16, 4, 2), (24, 3, 3)  # width, blocks and heads: of unequal depth, as in ViT-L/14
CLIPS: dict[str, dict[str, Any]] = {
    "long": {"vision": (16, 3, 2), "image_size": 8, "projection": 48, "context_length": 64},
    "other": {"seed": 5, "vision": VISION, "text": TEXT, "projection": 20},
    "deep_text": {"seed": 5, "vision": (16, 2, 2), "text": (24, 4, 3), "projection": 20, "context_length": 40},
    "wide_text": {"seed": 5, "vision": (16, 2, 2), "text": (32, 4, 4), "projection": 20, "context_length": 40},
    "smallest": {
        "seed": 5,
        "vision": (8, 2, 2),
        "text": (12, 3, 3),
        "projection": 6,
        "image_size": 8,
        "context_length": 40,
    },
    "pixels": {"vision": (16, 2, 2), "image_size": 16},
}
Pair = tuple[Clip, Reference]


@pytest.fixture(scope="session")
def clips(tiny: Callable[..., Pair]) -> Callable[[str], Pair]:
    return lambda name: tiny(**CLIPS[name])


@pytest.fixture(scope="session")
def other(clips: Callable[[str], Pair]) -> Pair:
    """Towers of unequal width and depth."""
    return clips("other")


@pytest.fixture(scope="session")
def pair(clips: Callable[[str], Pair]) -> Pair:
    """Images of a few patches, and long texts."""
    return clips("long")


@pytest.fixture(scope="session")
def deep_text(clips: Callable[[str], Pair]) -> Pair:
    """A text tower deeper than the vision tower."""
    return clips("deep_text")


@pytest.fixture(scope="session")
def wide_text(clips: Callable[[str], Pair]) -> Pair:
    """A text tower that is wider, deeper and of more heads than the vision tower."""
    return clips("wide_text")
