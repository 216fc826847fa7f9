"""Pictures of many kinds, and the ways in which files of transformers and open_clip ask for pixels of them.

`tools/reference/write_pixels.py` of commit 879c20d8 stored what those libraries make of them.
"""

from pathlib import Path

import numpy as np
from PIL import Image

EXPECTED = Path(__file__).parents[1] / "data_files" / "pixels.safetensors"
SIZE = 8  # of the model's images

_CUT = {"height": SIZE, "width": SIZE}
_CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}, "crop_size": _CUT}
_SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": _CUT}
# The content of `preprocessor_config.json`.
TRANSFORMERS: dict[str, dict] = {
    "clip": _CLIP,
    "old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 10, "crop_size": SIZE, "resample": 2},
    "square then crop": _CLIP | {"size": {"height": 10, "width": 10}, "do_center_crop": True},
    "square": _CLIP | {"size": _CUT, "do_center_crop": False, "resample": 1},
    "no mean": _CLIP | {"do_normalize": False, "image_processor_type": "CLIPImageProcessorFast"},
    "siglip": _SIGLIP,
    "siglip 2": _SIGLIP | {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.25, 0.125]},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": SIZE},
}
# The `preprocess_cfg` of `open_clip_config.json`.
OPEN_CLIP: dict[str, dict] = {
    "default": {},
    "shortest": {"interpolation": "bilinear", "resize_mode": "shortest", "mean": [0, 0, 0], "std": [1, 1, 1]},
    "squash": {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "pe": {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def pictures() -> dict[str, Image.Image]:
    """Of odd sizes, transparent, grey, with a palette, in CMYK and of one bit, by name."""
    random = np.random.default_rng(5)

    def noise(height: int, width: int, *channels: int) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (height, width, *channels), dtype=np.uint8))

    palette = noise(17, 13, 3).quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    return {
        "square": noise(8, 8, 3),
        "margin of 3": noise(11, 8, 3),
        "another margin of 3": noise(16, 38, 3),
        "odd": noise(41, 60, 3),
        "small": noise(3, 5, 3),
        "transparent": noise(23, 15, 4),
        "grey": noise(19, 16),
        "transparent grey": noise(9, 12, 2),
        "palette": palette,
        "palette with transparency": see_through,
        "ink": noise(15, 22, 4).convert("RGB").convert("CMYK"),
        "one bit": noise(20, 27).convert("1"),
    }


def grey_of_16_bits() -> Image.Image:
    """Grey levels of 16 bits, of which every library but ours makes white."""
    return Image.fromarray(np.random.default_rng(6).integers(2000, 60000, (17, 12)).astype(np.uint16))
