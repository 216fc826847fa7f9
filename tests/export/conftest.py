import pytest

import clipbias
from clipbias.clip import Clip


@pytest.fixture(scope="session")
def demo() -> Clip:
    """The embedded model, whose weights are stored in float16."""
    return clipbias.load("demo")
