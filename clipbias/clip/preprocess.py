"""Image preprocessing: CLIP's centre crop or SigLIP's square of the whole image, then normalisation."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.config import ClipConfig
from clipbias.data.transforms import BilinearSide, WholeSide
from clipbias.errors import ClipbiasError
from clipbias.io import check_file, read_json

HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and standard deviation


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The resolution and normalisation of the images that a checkpoint was trained on.

    Attributes:
      image_size: resolution in pixels.
      mean, std: per RGB channel.
      resize: "crop" brings the shorter side to the resolution, bicubic, and crops the centre; "bicubic" and "bilinear"
        resize the whole image to the square.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resize: str = "crop"

    @property
    def side(self) -> int:
        """`image_size`, as the functions of `data.transforms` take it."""
        return _SIDES[self.resize](self.image_size)

    def normalize(self, images: np.ndarray | jax.Array) -> jax.Array:
        """`(x / 255 - mean) / std`: uint8 `[..., R, R, 3]` to float32. Runs on the device, so that bytes travel."""
        scaled = jnp.asarray(images).astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def levels(self, images: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`: float32 `[..., R, R, 3]` to uint8."""
        levels = 255 * (images * np.asarray(self.std) + np.asarray(self.mean))
        return levels.round().clip(0, 255).astype(np.uint8)


# The sides that images are resized to, and the filters by their numbers in configurations.
_SIDES = {"crop": int, "bicubic": WholeSide, "bilinear": BilinearSide}
_FILTERS = {2: "bilinear", 3: "bicubic"}


def family_preprocessing(config: ClipConfig) -> Preprocessing:
    """The preprocessing of a model's family, for a checkpoint without a file for it."""
    size = config.vision.image_size
    return Preprocessing(size, HALF, HALF, "bicubic") if config.family == "siglip" else Preprocessing(size)


def read_preprocessing(folder: Path, config: ClipConfig) -> Preprocessing:
    """Reads `preprocessor_config.json`; a folder without one takes the family's own values."""
    path = folder / "preprocessor_config.json"
    siglip = config.family == "siglip"
    if not path.exists():
        return family_preprocessing(config)
    check_file(path)
    content = read_json(path, dict, what="a preprocessor configuration")
    try:
        preprocessing = preprocessing_of(config.vision.image_size, content["image_mean"], content["image_std"])
        size = content.get("size")
        cropped = content.get("do_center_crop", not siglip)
        if cropped or not (siglip or (isinstance(size, dict) and "height" in size)):
            return preprocessing
        return dataclasses.replace(preprocessing, resize=_FILTERS[content.get("resample", 3)])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ClipbiasError(f"{path} is not a preprocessor configuration ({error}); fetch it again.") from error


def preprocessing_of(image_size: int, mean: Any, std: Any) -> Preprocessing:
    """The preprocessing of a configuration file; `None` stands for CLIP's value.

    Raises `ValueError` or `TypeError` if mean or standard deviation are not three numbers.
    """
    preprocessing = Preprocessing(image_size)
    if mean is not None:
        preprocessing = dataclasses.replace(preprocessing, mean=_three_numbers(mean))
    if std is not None:
        preprocessing = dataclasses.replace(preprocessing, std=_three_numbers(std))
        if not min(preprocessing.std) > 0:
            raise ValueError("mean and std need three values each")
    return preprocessing


def _three_numbers(values: Any) -> tuple[float, float, float]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise ValueError("mean and std need three values each")
    return numbers


def preprocessor_json(preprocessing: Preprocessing) -> str:
    """The content of a `preprocessor_config.json` that `transformers`' image processors of CLIP and SigLIP read."""
    size = preprocessing.image_size
    whole = preprocessing.resize != "crop"
    square = {"height": size, "width": size}
    sizes = {"size": square} if whole else {"size": {"shortest_edge": size}, "crop_size": square}
    content = {
        "image_processor_type": "SiglipImageProcessor" if whole else "CLIPImageProcessor",
        "do_resize": True,
        **sizes,
        "resample": 2 if preprocessing.resize == "bilinear" else 3,
        "do_center_crop": not whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
    return json.dumps(content, indent=2) + "\n"
