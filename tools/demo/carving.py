"""Textures as lit surfaces: relief carved in coloured stone, seen at a slant. The style of `demo/textures` alone."""

import numpy as np

from tools.demo.patterns import Pattern, smooth_noise

SIZE = 64  # pixels of a finished picture

MATERIALS = (
    (196, 164, 120),  # sand
    (150, 108, 78),  # wood
    (168, 92, 70),  # clay
    (120, 132, 104),  # moss
    (104, 122, 138),  # slate
    (188, 176, 160),  # stone
)


def _slanted_plane(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates `[SIZE, SIZE]` x and y of a plane seen in perspective, turned and shifted at random."""
    side = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    across, down = np.meshgrid(side, side)
    tilt = rng.uniform(-0.55, 0.55, 2)
    depth = 1 + tilt[0] * across + tilt[1] * down
    repeats = rng.uniform(2.8, 5.5)
    angle = np.radians(rng.choice([0, 90]) + rng.normal(0, 14))
    u, v = repeats * across / depth, repeats * down / depth
    shift = rng.uniform(3, 11, 2)
    return np.cos(angle) * u + np.sin(angle) * v + shift[0], np.cos(angle) * v - np.sin(angle) * u + shift[1]


def relief(pattern: Pattern, rng: np.random.Generator) -> np.ndarray:
    """A lit surface carved with `pattern`: uint8 `[SIZE, SIZE, 3]`."""
    x, y = _slanted_plane(rng)
    height = pattern(x, y, rng)
    rough = smooth_noise(6 * x, 6 * y, rng) + smooth_noise(1.3 * x, 1.3 * y, rng)
    if rng.random() < 0.5:
        height = 1 - height
    slope_y, slope_x = np.gradient(height + 0.08 * rough)
    direction = rng.uniform(0, 2 * np.pi)
    steepness = rng.uniform(1.2, 2.2)
    light = np.array([np.cos(direction), np.sin(direction), rng.uniform(0.7, 1.2)])
    normal = np.stack([-steepness * slope_x, -steepness * slope_y, np.ones_like(height)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    brightness = np.clip(normal @ (light / np.linalg.norm(light)), 0, 1)
    material = np.array(MATERIALS[rng.integers(len(MATERIALS))], float) + rng.normal(0, 12, 3)
    stain = 1 - rng.uniform(0.05, 0.3) * (1 - height) - 0.1 * rough
    lamp = np.array([1.08, 1.0, 0.9]) if rng.random() < 0.5 else np.array([0.92, 1.0, 1.08])
    fall_off = 1 - rng.uniform(0, 0.35) * (x - x.min()) / np.ptp(x)
    pixels = material * lamp * (1.35 * brightness * stain * fall_off)[..., None] + rng.normal(0, 4, (SIZE, SIZE, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)
