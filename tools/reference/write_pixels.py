"""Writes what transformers and open_clip make of the pictures of `tests/clip/pixels.py`.

  pip install torch torchvision open_clip_torch transformers
  python -m tools.reference.write_pixels

transformers runs on Pillow (its `Pil` classes); with torchvision's resizing it makes levels that differ by one or two.
"""

import dataclasses

import numpy as np
import safetensors.numpy
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2

from tests.clip import pixels


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    pictures = list(pixels.pictures().values())
    for name, content in pixels.TRANSFORMERS.items():
        kind = content.get("image_processor_type", "CLIPImageProcessor").removesuffix("Fast")
        processor = getattr(transformers, f"{kind}Pil").from_dict(dict(content))
        # Not all classes turn pictures into RGB by themselves.
        in_rgb = [transformers.image_transforms.convert_to_rgb(image) for image in pictures]
        made = [processor(image, return_tensors="np")["pixel_values"][0] for image in in_rgb]
        arrays[f"transformers.{name}"] = np.stack(made).transpose(0, 2, 3, 1)
    for name, wishes in pixels.OPEN_CLIP.items():
        settings = dataclasses.replace(PreprocessCfg(size=pixels.SIZE), **wishes)
        transform = image_transform_v2(settings, is_train=False)
        arrays[f"open_clip.{name}"] = np.stack([transform(image).numpy().transpose(1, 2, 0) for image in pictures])
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    safetensors.numpy.save_file(arrays, pixels.EXPECTED)
    print(f"{pixels.EXPECTED}: {pixels.EXPECTED.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
