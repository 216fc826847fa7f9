"""Two profiles: a few inputs per test in every run of the suite, and `--hypothesis-profile=thorough`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import clipbias
from clipbias.clip import Clip
from tests.fuzz.answers import COUNTS


@pytest.fixture(scope="session", autouse=True)
def _files_of_others() -> None:
    """Makes the folders and the list of fonts that matplotlib makes at its first use: no input does."""
    import matplotlib.font_manager

    matplotlib.get_configdir(), matplotlib.get_cachedir()


@pytest.fixture(scope="session")
def clip(model: Path) -> Callable[[], Clip]:
    """Gives the model. Not the model itself: a failing example is printed with all its arguments."""
    loaded = clipbias.load(model)
    return lambda: loaded


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many inputs were answered, where this process ran the tests itself."""
    if COUNTS:
        counted = ", ".join(f"{count:,} {how}" for how, count in sorted(COUNTS.items()))
        terminalreporter.write_line(
            f"{COUNTS.total():,} inputs answered ({counted}), profile {settings.get_current_profile_name()}"
        )
