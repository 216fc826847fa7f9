"""CLIP's image preprocessing: shorter side to the model's resolution, centre crop, normalise."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resolution in pixels and the mean and standard deviation per RGB channel that a checkpoint was trained with."""

    image_size: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def normalize(self, images: np.ndarray | jax.Array) -> jax.Array:
        """`(x / 255 - mean) / std`: uint8 `[..., R, R, 3]` to float32. Runs on the device, so that bytes travel."""
        scaled = jnp.asarray(images).astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)


def read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """Reads `preprocessor_config.json`; a folder without one takes CLIP's own values."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return Preprocessing(image_size)
    check_file(path)
    content = read_json(path, dict, what="a CLIP preprocessor configuration")
    try:
        return preprocessing_of(image_size, content["image_mean"], content["image_std"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ClipbiasError(f"{path} is not a CLIP preprocessor configuration ({error}); fetch it again.") from error


def preprocessing_of(image_size: int, mean: Any, std: Any) -> Preprocessing:
    """The preprocessing of a configuration file; `None` stands for CLIP's own value. Raises `ValueError` or
    `TypeError` for what is no mean or standard deviation of three channels.
    """
    own = Preprocessing(image_size)
    mean, std = (
        default if given is None else tuple(float(x) for x in given)
        for given, default in ((mean, own.mean), (std, own.std))
    )
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0 or not np.isfinite((*mean, *std)).all():
        raise ValueError("mean and std need three values each")
    return Preprocessing(image_size, mean, std)


def preprocessor_json(preprocessing: Preprocessing) -> str:
    """The content of a `preprocessor_config.json` that `transformers.CLIPImageProcessor` reads."""
    size = preprocessing.image_size
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
    return json.dumps(content, indent=2) + "\n"
