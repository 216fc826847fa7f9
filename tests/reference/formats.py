"""The one model that `tests/data_files/formats` holds in every format: its geometry, weights and inputs.

OpenAI's own files say nothing of heads, which are 64 wide by rule: both towers have a single one. The MLP is narrower
than the tower, which keeps the files small and no matrix square that could be read the wrong way round unnoticed.
"""

import math
from pathlib import Path

import numpy as np

from tests import helpers
from tests.reference import weights

FORMATS = Path(__file__).parents[1] / "data_files" / "formats"
MLP_WIDTH = 32
TEXT_LENGTHS = (5, 9, 22)


def config(folder: Path) -> dict:
    """Writes the tokenizer to `folder`; returns the Hugging Face configuration."""
    settings = helpers.tiny_geometry(folder, vision=(64, 1, 1), text=(64, 2, 1), projection=20)
    for tower in ("vision_config", "text_config"):
        settings[tower]["intermediate_size"] = MLP_WIDTH
    return settings


def state(settings: dict) -> weights.State:
    """Float32 weights in Hugging Face's names.

    Matrices and the biases of linear layers hold few different numbers, which float16 and bfloat16 have too, so that a
    file in mixed precision holds the same model; the rest needs all of float32.
    """
    drawn = weights.random_state_dict(settings, seed=12)
    for name, value in drawn.items():
        linear = value.ndim != 1 and "position" not in name
        if (linear and value.ndim) or name.endswith(("proj.bias", "fc1.bias", "fc2.bias")):
            step = 2.0 ** math.floor(math.log2(float(value.std()))) / 4
            drawn[name] = (np.round(value / step) * step).astype(np.float32)
    drawn["logit_scale"] = np.asarray(math.log(1 / 0.07) + 0.5, np.float32)
    return drawn


def inputs(settings: dict) -> dict[str, np.ndarray]:
    """Images `[3, R, R, 3]` and tokens `[3, N]`, padded with the end of a text."""
    return {"images": helpers.random_images(settings, 3), "tokens": helpers.random_tokens(settings, TEXT_LENGTHS)}
