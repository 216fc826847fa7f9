"""AugMix (Hendrycks et al. 2020, arXiv 1912.02781) as TPT takes it: a crop mixed with chains of mild distortions.

The operations are Pillow's own, on uint8 images of one size `R`. Each is called with a level in [0.1, 1), which is
severity 1, and a sign; some need neither.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageOps

CHAINS = 3
LONGEST_CHAIN = 3
LEVELS = (0.1, 1.0)

Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """The image moved by `matrix`, black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * int(3 * level), resample=Image.Resampling.BILINEAR)


def _solarize(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(25.6 * level))


def _pixels(image: Image.Image, level: float, sign: int) -> int:
    """The pixels that an image is moved by: at most seven of 224."""
    return sign * int(level * image.size[0] / 30)


OPERATIONS: Mapping[str, Operation] = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, 4),
    "rotate": _rotate,
    "solarize": _solarize,
    "shear_x": lambda image, level, sign: _affine(image, (1, sign * 0.03 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level, sign: _affine(image, (1, 0, 0, sign * 0.03 * level, 1, 0)),
    "translate_x": lambda image, level, sign: _affine(image, (1, 0, _pixels(image, level, sign), 0, 1, 0)),
    "translate_y": lambda image, level, sign: _affine(image, (1, 0, 0, 0, 1, _pixels(image, level, sign))),
}


def augmix(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`m x + (1 - m) Σ_i w_i x_i`: uint8 `[R, R, 3]` to float32 of the same range, which is not rounded.

    `x_i` is the crop `x` after one to three operations, any of them equally likely each time; `w` is drawn from
    Dirichlet(1, 1, 1) and `m` from Beta(1, 1). The weights sum to one, so that this mixes normalised pixels as well.
    """
    shares = rng.dirichlet(np.ones(CHAINS))
    weight = rng.beta(1, 1)  # of the crop itself
    operations = tuple(OPERATIONS.values())
    mixed = weight * crop.astype(np.float64)
    for share in shares:
        image = Image.fromarray(np.ascontiguousarray(crop))
        for _ in range(rng.integers(1, LONGEST_CHAIN + 1)):
            operation = operations[rng.integers(len(operations))]
            image = operation(image, rng.uniform(*LEVELS), 1 if rng.random() < 0.5 else -1)
        mixed += (1 - weight) * share * np.asarray(image)
    return mixed.astype(np.float32)
