"""Two profiles: a few inputs per test in every run of the suite, and `--hypothesis-profile=thorough`."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipbias
from clipbias.clip import Clip


@pytest.fixture(scope="session")
def clip(model: Path) -> Callable[[], Clip]:
    """Gives the model. Not the model itself: a failing example is printed with all its arguments."""
    loaded = clipbias.load(model)
    return lambda: loaded
