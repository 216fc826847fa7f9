"""Writes what torchvision's transforms do to a few small pictures, for the tests.

    python -m tools.make_transform_reference tests/data/transform_reference.npz

Needs torch and torchvision; nothing else of the project does. Boxes come with the random draws that led to
them, so that the rule can be replayed without torch.
"""

import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

SIZES = [(20, 30), (31, 17), (16, 16), (7, 90), (90, 7), (33, 47), (5, 5)]
IMAGE_SIZE = 16
BOXES_PER_SIZE = 6


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    bicubic = transforms.InterpolationMode.BICUBIC
    test_transform = transforms.Compose(
        [transforms.Resize(IMAGE_SIZE, interpolation=bicubic), transforms.CenterCrop(IMAGE_SIZE)]
    )
    saved = {"sizes": np.asarray(SIZES), "image_size": np.asarray(IMAGE_SIZE)}
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        boxes = []
        draws = []
        crops = []
        for _ in range(BOXES_PER_SIZE):
            box, drawn = box_and_draws(image)
            boxes.append(box)
            draws.append(drawn + [np.nan] * (22 - len(drawn)))
            size = [IMAGE_SIZE, IMAGE_SIZE]
            crops.append(np.asarray(transforms.functional.resized_crop(image, *box, size, bicubic)))
        saved |= {
            f"pixels_{number}": pixels,
            f"boxes_{number}": np.asarray(boxes),
            f"draws_{number}": np.asarray(draws),
            f"crops_{number}": np.asarray(crops),
            f"test_{number}": np.asarray(test_transform(image)),
        }
    np.savez_compressed(path, allow_pickle=False, **saved)


def box_and_draws(image: Image.Image) -> tuple[tuple[int, int, int, int], list[float]]:
    """One `RandomResizedCrop` box and the random numbers it drew, in order."""
    drawn = []
    uniform = torch.Tensor.uniform_
    randint = torch.randint

    def logged_uniform(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        value = uniform(tensor, *arguments)
        drawn.append(value.item())
        return value

    def logged_randint(*arguments: Any, **options: Any) -> torch.Tensor:
        value = randint(*arguments, **options)
        drawn.append(float(value.item()))
        return value

    torch.Tensor.uniform_ = logged_uniform
    torch.randint = logged_randint
    try:
        return transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]), drawn
    finally:
        torch.Tensor.uniform_ = uniform
        torch.randint = randint


if __name__ == "__main__":
    main(sys.argv[1])
