from pathlib import Path

import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from tests import helpers
from tests.reference import weights

FOLDER = Path(__file__).parents[1] / "data_files" / "tiny_quick_gelu"


@pytest.fixture(scope="session")
def clip() -> Clip:
    """A random model with three layers of two heads and a grid of four by four patches."""
    return clipbias.load(FOLDER)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return helpers.random_images(weights.read_config(FOLDER), 4)
