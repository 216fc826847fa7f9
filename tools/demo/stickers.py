"""An icon as a sticker: turned, somewhere on coloured, shaded or patterned paper."""

import colorsys

import numpy as np
from PIL import Image

from tools.demo.patterns import PATTERNS, plane, smooth_noise

OVERSAMPLING = 2  # stickers are put together this many times larger


def paper_colour(rng: np.random.Generator) -> np.ndarray:
    """`[3]`: from white over pastel to strong colours, none so dark that a black sticker is lost on it."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.65), rng.uniform(0.65, 1.0))
    return 255 * np.array([red, green, blue])


def paper(size: int, rng: np.random.Generator) -> np.ndarray:
    """`[size, size, 3]` float: plain, shaded from one colour to another, clouded, or with a faint pattern."""
    first, second = paper_colour(rng), paper_colour(rng)
    kind = rng.random()
    if kind < 0.3:
        share = np.zeros((size, size))
    elif kind < 0.55:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.linspace(-0.5, 0.5, size)
        share = 0.5 + (across * np.cos(angle) + across[:, None] * np.sin(angle)) / 1.5
    elif kind < 0.75:
        share = smooth_noise(*plane(size, rng, repeats=rng.uniform(0.5, 3), turn=rng.uniform(0, 90)), rng)
    else:
        pattern = PATTERNS[str(rng.choice(list(PATTERNS)))]
        heights = pattern(*plane(size, rng, repeats=rng.uniform(3, 8), turn=rng.uniform(-90, 90)), rng)
        share = rng.uniform(0.2, 0.8) * heights
    mixed: np.ndarray = first + (second - first) * share[..., None]
    return mixed


def sticker(icon: np.ndarray, rng: np.random.Generator, *, size: int) -> np.ndarray:
    """Puts one icon on paper.

    Args:
      icon: `[n, n, 4]` uint8, red, green, blue and opacity.
      size: height and width of the picture.

    Returns:
      `[size, size, 3]` uint8.
    """
    canvas = size * OVERSAMPLING
    ground = paper(canvas, rng)
    side = int(canvas * rng.uniform(0.5, 0.95))
    turned = Image.fromarray(icon).resize((side, side), Image.Resampling.BICUBIC)
    turned = turned.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    left, top = (int(rng.uniform(0.1, 0.9) * (canvas - length)) for length in turned.size)
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    picture.paste(turned.convert("RGB"), (left, top), turned.getchannel("A"))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
