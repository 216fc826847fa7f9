"""Image preprocessing of a model: resizing and cropping (`data.transforms`), then normalisation.

It is read from and written to the files of transformers (`preprocessor_config.json`, and since version 5
`processor_config.json`, which then counts) and open_clip (`open_clip_config.json`). Unsupported settings are errors.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clipbias.checks import shown
from clipbias.clip.config import ClipConfig
from clipbias.data.transforms import Resizing
from clipbias.errors import ClipbiasError
from clipbias.io import read_json

SIGLIP_MEAN_STD = (0.5, 0.5, 0.5)  # the mean and the standard deviation


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizing to R x R pixels, and mean and standard deviation per RGB channel of values from 0 to 1."""

    resizing: Resizing
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def image_size(self) -> int:
        """The resolution R in pixels."""
        return self.resizing.side

    def normalize(self, levels: np.ndarray | jax.Array) -> jax.Array:
        """Computes `(x / 255 - mean) / std` on the device: uint8 `[..., R, R, 3]` to float32."""
        # Divided by 255 first, as torchvision's ToTensor does: one factor for both would round differently.
        scaled = jnp.asarray(levels).astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def levels(self, normalised: np.ndarray) -> np.ndarray:
        """Computes the inverse of `normalize`: float32 `[..., R, R, 3]` to uint8."""
        levels = 255 * (normalised * np.asarray(self.std) + np.asarray(self.mean))
        # Rounded: float32 comes back a hair beside the level, and a cast would cut it to the one below.
        return levels.round().clip(0, 255).astype(np.uint8)


PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
PREPROCESSOR_FILES = (PREPROCESSOR, PROCESSOR)

_CLIP_DEFAULTS = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
_SIGLIP_DEFAULTS: dict[str, Any] = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": SIGLIP_MEAN_STD,
    "image_std": SIGLIP_MEAN_STD,
}
# Image processors of transformers, and their defaults for settings that a file leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "ChineseCLIPImageProcessor": _CLIP_DEFAULTS,
    "BitImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "ViTImageProcessor": _SIGLIP_DEFAULTS | {"resample": 2},
}
_FAMILIES = {"siglip": "SiglipImageProcessor", "chinese_clip": "ChineseCLIPImageProcessor"}
# Largest size before the centre crop, in image sizes of the model. Published models ask for 1.15; much more fills the
# memory with the first picture.
_MAX_RESIZED = 4
# A key of clipbias: transformers has no setting for open_clip's manner of half pixels and transparency.
_LIBRARY = "clipbias_library"


def family_preprocessing(config: ClipConfig, *, native: bool = False) -> Preprocessing:
    """Returns a family's preprocessing in transformers or (`native`) in its publisher's code, where no file has it."""
    size = config.vision.image_size
    library = "open_clip" if native else "transformers"  # OpenAI's code and Meta's resize as open_clip does
    if config.family in ("siglip", "pe"):
        resampling = "bilinear" if config.family == "pe" else "bicubic"
        return Preprocessing(Resizing(size, None, True, resampling, library), SIGLIP_MEAN_STD, SIGLIP_MEAN_STD)
    # Chinese-CLIP's code squashes pictures, its processor in transformers cuts out their centre.
    return Preprocessing(Resizing(size, whole=native and config.family == "chinese_clip", library=library))


def read_preprocessor(folder: Path, config: ClipConfig) -> Preprocessing:
    """Reads transformers' files. Default: the family's values. Raises `ClipbiasError` for unsupported settings."""
    # Since version 5, transformers reads `processor_config.json` first.
    for name in (PROCESSOR, PREPROCESSOR):
        path = folder / name
        if not path.exists():
            continue
        content = read_json(path, dict, what="a preprocessor configuration")
        if name == PROCESSOR:
            content = content.get("image_processor")
        if content is None:  # a processor's file may have settings of the tokenizer only
            continue
        try:
            return _of_transformers(dict(content), config)
        except ClipbiasError as error:
            raise ClipbiasError(f"{path} {error}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ClipbiasError(f"{path} is not a preprocessor configuration ({error}); fetch it again.") from error
    return family_preprocessing(config)


def _of_transformers(content: dict[str, Any], config: ClipConfig) -> Preprocessing:
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    kind = str(kind or _FAMILIES.get(config.family, "CLIPImageProcessor"))
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        raise ClipbiasError(f"names the image processor {shown(kind)}; clipbias knows {', '.join(_DEFAULTS)}.")
    settings: dict[str, Any] = _DEFAULTS[kind] | content
    # Each setting that clipbias does not have would silently give other pixels than the model was trained on.
    if not settings.get("do_resize", True):
        raise ClipbiasError("has do_resize = false; clipbias resizes every picture to the model's resolution.")
    factor = settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_rescale", True) or not abs(factor * 255 - 1) <= 1e-6:
        raise ClipbiasError(f"has rescale_factor = {shown(factor)} (do_rescale); clipbias divides levels by 255.")
    if settings.get("do_pad") or settings.get("pad_size"):
        raise ClipbiasError("has do_pad = true; clipbias does not pad pictures.")
    # The file was written by clipbias if it has this key; another value means that somebody edited it.
    library = settings.get(_LIBRARY, "transformers")
    if library not in ("transformers", "open_clip"):
        raise ClipbiasError(f"has {_LIBRARY} = {shown(library)}, which clipbias never writes.")
    # ViT's processor takes a number for height and width, CLIP's for the shorter side.
    size, whole = _side_of(settings["size"], whole=kind == "ViTImageProcessor", name="size")
    side = size
    if settings["do_center_crop"]:
        side, _ = _side_of(settings.get("crop_size", 224), whole=True, name="crop_size")
    elif not whole:
        raise ClipbiasError("resizes the shorter side without a centre crop, so that images have no common shape.")
    if side > size:
        raise ClipbiasError(f"crops {side} pixels out of {size}, so that images get a black frame; correct crop_size.")
    image_size = config.vision.image_size
    if side != image_size:
        raise ClipbiasError(f"makes images of {side} pixels where the model takes {image_size}; correct its sizes.")
    if size > (most := _MAX_RESIZED * image_size):
        raise ClipbiasError(
            f"resizes pictures to {size} pixels where the model takes {image_size}; correct size, to at most {most}."
        )
    resampling = Image.Resampling(settings["resample"]).name.lower()
    resizing = Resizing(side, None if size == side else size, whole, resampling, library)
    mean = settings.get("image_mean")
    std = settings.get("image_std")
    # The identity, so that `normalize` only divides by 255.
    if not settings.get("do_normalize", True):
        mean = (0.0, 0.0, 0.0)
        std = (1.0, 1.0, 1.0)
    return preprocessing_of(resizing, mean, std)


def _side_of(size: Any, *, whole: bool, name: str) -> tuple[int, bool]:
    """Parses a size of transformers: pixels, and whether they are both height and width (`whole` for a number)."""
    if isinstance(size, dict):
        held = {key: value for key, value in size.items() if value is not None}
        if held.keys() == {"shortest_edge"}:
            return int(held["shortest_edge"]), False
        if held.keys() == {"height", "width"} and held["height"] == held["width"]:
            return int(held["height"]), True
        raise ClipbiasError(f"has {name} = {shown(size)}; clipbias follows a shortest_edge, or equal height and width.")
    return int(size), whole


def of_open_clip(wishes: Mapping[str, Any], image_size: int) -> Preprocessing:
    """Parses a `preprocess_cfg`. Raises `ClipbiasError` for unsupported settings, Python's errors for damaged ones."""
    allowed = {
        "interpolation": ("bicubic", "bilinear", "random"),
        "resize_mode": ("shortest", "squash"),
        "mode": ("RGB",),
    }
    # The first choice is open_clip's default, for settings that are missing or null.
    values = {name: wishes.get(name) or choices[0] for name, choices in allowed.items()}
    for name, choices in allowed.items():
        if values[name] not in choices:
            raise ClipbiasError(
                f"asks for preprocess_cfg.{name} = {shown(values[name])}; clipbias follows {', '.join(choices)}."
            )
    resampling = "bilinear" if values["interpolation"] == "bilinear" else "bicubic"
    resizing = Resizing(image_size, whole=values["resize_mode"] == "squash", resampling=resampling)
    return preprocessing_of(resizing, wishes.get("mean"), wishes.get("std"))


def open_clip_preprocessing(preprocessing: Preprocessing) -> dict[str, object]:
    """Returns a `preprocess_cfg`: the inverse of `of_open_clip`."""
    resizing = preprocessing.resizing
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": resizing.resampling,
        "resize_mode": "squash" if resizing.whole else "shortest",
    }


def preprocessing_of(resizing: Resizing, mean: Any, std: Any) -> Preprocessing:
    """Adds mean and standard deviation, by default CLIP's. Raises `ValueError` or `TypeError` for other values."""
    mean_std: dict[str, Any] = {}
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            array = np.broadcast_to(np.asarray(values, np.float64), 3)
            if not np.isfinite(array).all() or (name == "std" and array.min() <= 0):
                raise ValueError("mean and std need three values each")
            mean_std[name] = tuple(array.tolist())
    return Preprocessing(resizing, **mean_std)


def preprocessor_json(preprocessing: Preprocessing) -> str:
    """Returns the content of a `preprocessor_config.json` with which transformers gives the same pixels."""
    resizing = preprocessing.resizing
    side = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    resized = resizing.size or preprocessing.image_size
    # SigLIP's processor has no crop, so a picture that is cut needs CLIP's.
    cut = not resizing.whole or resizing.size is not None
    content: dict[str, object] = {
        "image_processor_type": "CLIPImageProcessor" if cut else "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": resized, "width": resized} if resizing.whole else {"shortest_edge": resized},
        "resample": int(Image.Resampling[resizing.resampling.upper()]),
        "do_center_crop": cut,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
    if cut:
        content["crop_size"] = side
    if resizing.library != "transformers":
        content[_LIBRARY] = resizing.library
    return json.dumps(content, indent=2) + "\n"
