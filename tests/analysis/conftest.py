from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from tests import helpers
from tests.reference import methods, weights
from tests.reference.tokenizer import SimpleTokenizer

FOLDER = Path(__file__).parents[1] / "data_files" / "tiny_quick_gelu"


@pytest.fixture(scope="session")
def clip() -> Clip:
    """A random model with three layers of two heads and a grid of four by four patches."""
    return clipbias.load(FOLDER)


@pytest.fixture(scope="session")
def reference() -> methods.Reference:
    """The same in float64."""
    state = weights.double(safetensors.numpy.load_file(FOLDER / "model.safetensors"))
    return methods.Reference(state, weights.read_config(FOLDER), SimpleTokenizer(FOLDER, 24))


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return helpers.random_images(weights.read_config(FOLDER), 4)
