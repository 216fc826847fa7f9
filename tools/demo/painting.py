"""From drawings to pixels: palettes, backgrounds, flat paint and the blur, noise and low resolution of a camera."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.demo.geometry import BODY, Drawing
from tools.demo.patterns import plane, smooth_noise

SIZE = 48  # pixels of a finished scene
OVERSAMPLING = 3  # scenes are drawn this many times larger, so that edges come out smooth
CANVAS = SIZE * OVERSAMPLING

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (205, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 215, 60),
    "green": (50, 150, 65),
    "blue": (45, 85, 200),
    "purple": (130, 60, 165),
    "pink": (240, 140, 180),
    "brown": (125, 80, 45),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}


@dataclass(frozen=True)
class Palette:
    """What one scene is painted with.

    Attributes:
      background: behind everything.
      tones: colours of `BODY`, `DETAIL` and `ACCENT`.
      name: the word for the body's colour, or None where the scene is grey.
    """

    background: Colour
    tones: tuple[Colour, Colour, Colour]
    name: str | None


def _grey(value: float) -> Colour:
    level = int(np.clip(value, 0, 255))
    return level, level, level


def _shaded(colour: Colour, rng: np.random.Generator) -> Colour:
    red, green, blue = np.clip(np.array(colour) * rng.uniform(0.75, 1.15) + rng.normal(0, 10, 3), 0, 255)
    return int(red), int(green), int(blue)


def random_palette(rng: np.random.Generator, *, colourful: float = 0.25) -> Palette:
    """Light on dark or dark on light grey, or named colours with probability `colourful`."""
    dark, light = rng.uniform(0, 75), rng.uniform(165, 255)
    ground, body = (dark, light) if rng.random() < 0.5 else (light, dark)
    detail = ground + rng.uniform(0, 0.3) * (body - ground)
    accent = ground + rng.uniform(0.45, 0.9) * (body - ground)
    if rng.random() >= colourful:
        return Palette(_grey(ground), (_grey(body), _grey(detail), _grey(accent)), None)
    names = rng.permutation(list(COLOURS))
    background, body_name, accent_name = names[:3]
    # A pale colour cannot be told from a white background, nor a deep one from black: keep their lightness apart.
    lightness = {name: float(np.dot(COLOURS[name], (0.3, 0.6, 0.1))) for name in names}
    background = next(name for name in names if abs(lightness[name] - lightness[body_name]) > 70)
    first, second, third = (_shaded(COLOURS[name], rng) for name in (body_name, background, accent_name))
    return Palette(_shaded(COLOURS[background], rng), (first, second, third), str(body_name))


def new_canvas(palette: Palette, rng: np.random.Generator) -> Image.Image:
    """A `CANVAS` square in the background colour: flat, or with a soft slope or patches of light."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), palette.background)
    if rng.random() < 0.5:
        return canvas
    x, y = plane(24, rng, repeats=rng.uniform(0.3, 4), turn=rng.uniform(0, 90))
    light = (smooth_noise(x, y, rng) - 0.5) * rng.uniform(10, 70)
    shaded = np.clip(np.array(palette.background, float) + light[..., None], 0, 255).astype(np.uint8)
    return Image.fromarray(shaded).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)


def paint(canvas: Image.Image, drawing: Drawing, palette: Palette, *, width: float, outline: bool) -> None:
    """Paints `drawing`, whose points are canvas pixels, in place.

    Args:
      width: of lines, in canvas pixels.
      outline: draws only the edges of closed parts, in the body's colour, in place of filling them.
    """
    pen = ImageDraw.Draw(canvas)
    for part in drawing:
        points = [tuple(point) for point in part.points]
        colour = palette.tones[part.tone]
        if part.closed and not outline:
            pen.polygon(points, fill=colour)
            continue
        if part.closed:
            points.append(points[0])
        stroke = palette.tones[BODY] if outline else colour
        pen.line(points, fill=stroke, width=max(1, round(width)), joint="curve")
        radius = width / 2
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=stroke)


def silhouette(palette: Palette) -> Palette:
    """The same palette with every part in the body's colour."""
    body = palette.tones[BODY]
    return Palette(palette.background, (body, body, body), palette.name)


def finish(canvas: Image.Image, rng: np.random.Generator, *, low_resolution: float = 0.05) -> np.ndarray:
    """Scales down to `[SIZE, SIZE, 3]` uint8 with a camera's faults.

    Args:
      low_resolution: the probability of a scan of only 7 to 16 pixels across.
    """
    image = canvas.reduce(OVERSAMPLING)
    if rng.random() < low_resolution:
        across = int(rng.integers(7, 17))
        image = canvas.resize((across, across), Image.Resampling.BOX)
        kernel = Image.Resampling.BICUBIC if rng.random() < 0.7 else Image.Resampling.BILINEAR
        image = image.resize((SIZE, SIZE), kernel)
    elif rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    pixels: np.ndarray = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(1, 18), pixels.shape[:2])[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """`[h, w, 3]` or `[h, w]` uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
