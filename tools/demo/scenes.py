"""Scenes for pretraining: a small picture, what it shows, and sentences that say so.

A scene is a function of (seed, index) alone. Its kind is drawn from `KINDS`; most scenes are grey because a tiny
model learns form long before it can ignore colour.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.demo import concepts, icons, painting
from tools.demo.drawings import pen_digits, shapes, things, wardrobe
from tools.demo.geometry import Drawing, random_matrix, transform, wobble
from tools.demo.painting import CANVAS, Palette
from tools.demo.patterns import PATTERNS, plane

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COUNTS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Scene:
    """One picture and its descriptions.

    Attributes:
      image: `[SIZE, SIZE, 3]` uint8.
      kind: a key of `KINDS`.
      name: the bare noun.
      phrases: longer descriptions of this very picture.
    """

    image: np.ndarray
    kind: str
    name: str
    phrases: tuple[str, ...]


@cache
def fonts(pixels: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    """The text fonts that matplotlib ships, at one size."""
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    files = [*sorted(folder.glob("DejaVuS*.ttf")), *sorted(folder.glob("STIXGeneral*.ttf"))]
    files += [folder / f"{name}.ttf" for name in ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")]
    return tuple(ImageFont.truetype(str(file), pixels) for file in files if "Display" not in file.name)


def _place(drawing: Drawing, rng: np.random.Generator, *, centre: tuple[float, float], size: float) -> Drawing:
    """A bent, turned copy whose half-extent is `size` canvas pixels around `centre`."""
    bent = wobble(drawing, rng, rng.uniform(0, 0.06))
    matrix = random_matrix(rng, turn=14, shear=0.2, stretch=0.18) * size
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0])
    return transform(bent, matrix, np.array(centre))


def _draw(canvas: Image.Image, drawing: Drawing, palette: Palette, rng: np.random.Generator, size: float) -> None:
    """Paints in one of three flat styles: filled, silhouette, clean outline."""
    style = rng.random()
    painting.paint(
        canvas,
        drawing,
        painting.silhouette(palette) if style < 0.15 else palette,
        width=max(3.0, size * rng.uniform(0.08, 0.2)),
        outline=style > 0.7,
    )


def _centre(rng: np.random.Generator, spread: float = 0.14) -> tuple[float, float]:
    x, y = rng.uniform(0.5 - spread, 0.5 + spread, 2) * CANVAS
    return float(x), float(y)


def _coloured(palette: Palette, noun: str) -> str:
    return f"{palette.name} {noun}" if palette.name else noun


def _object_scene(kind: str, make: Callable[[], Mapping[str, Drawing]], rng: np.random.Generator) -> Scene:
    drawings = make()
    name = str(rng.choice(list(drawings)))
    palette = painting.random_palette(rng)
    canvas = painting.new_canvas(palette, rng)
    size = CANVAS * rng.uniform(0.22, 0.5)
    centre = _centre(rng, 0.16)
    _draw(canvas, _place(drawings[name], rng, centre=centre, size=size), palette, rng, size)
    phrases = [f"a {_coloured(palette, name)}", f"a drawing of a {_coloured(palette, name)}"]
    if palette.name:
        phrases.append(f"the {name} is {palette.name}")
    if size < 0.28 * CANVAS:
        phrases.append(f"a small {_coloured(palette, name)}")
    if size > 0.44 * CANVAS:
        phrases.append(f"a large {_coloured(palette, name)}")
    return Scene(painting.finish(canvas, rng), kind, name, tuple(phrases))


def _emoji(rng: np.random.Generator) -> Scene:
    described = concepts.described()
    names = tuple(described)
    style = str(rng.choice(list(icons.SEEN)))
    pictures = icons.glyphs(style, names)
    # A third shows what the demo's datasets name, in other hands: so few pictures have to stand for these words.
    of_classes = [icon for icon in concepts.CLASS_OF if icon in pictures]
    icon = str(rng.choice(of_classes if rng.random() < 0.33 else list(pictures)))
    image = icons.sticker(pictures[icon], rng, size=painting.SIZE)
    if rng.random() < 0.2:
        image = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    name = concepts.noun(icon)
    word = icon.replace("-", " ")
    phrases = (f"an emoji of a {word}", f"a {word}", *(f"a {tag}" for tag in described[icon]))
    return Scene(image, "emoji", name, phrases)


def _glyph(canvas: Image.Image, text: str, palette: Palette, rng: np.random.Generator) -> None:
    """Pastes one character in a random font, weight, size and slant."""
    choice = fonts(96)
    font = choice[rng.integers(len(choice))]
    mask = Image.new("L", (160, 160), 0)
    weight = int(rng.integers(0, 6))
    ImageDraw.Draw(mask).text((80, 80), text, fill=255, font=font, anchor="mm", stroke_width=weight)
    left, top, right, bottom = mask.getbbox() or (0, 0, 160, 160)
    box = np.array([[left, top], [left, bottom], [right, bottom], [right, top]], float)
    corners = box + rng.normal(0, 0.09, (4, 2)) * (bottom - top)
    height = CANVAS * rng.uniform(0.5, 1.0)
    width = max(height * (right - left) / (bottom - top) * np.exp(rng.uniform(-0.15, 0.25)), 0.15 * height)
    stretched = mask.transform(
        (int(min(width, CANVAS)), int(height)), Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BILINEAR
    )
    stretched = stretched.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    room = (CANVAS - stretched.width, CANVAS - stretched.height)
    left, top = (int(rng.uniform(0.25, 0.75) * space) for space in room)
    canvas.paste(palette.tones[0], (left, top), stretched)


def _digit(rng: np.random.Generator) -> Scene:
    value = int(rng.integers(10))
    name = DIGITS[value]
    palette = painting.random_palette(rng, colourful=0.12)
    canvas = painting.new_canvas(palette, rng)
    phrases = [f"the digit {name}", f"the number {name}", f"the number {value}", f"a {_coloured(palette, name)}"]
    if rng.random() < 0.6:
        forms = pen_digits()[name]
        bent = wobble(forms[rng.integers(len(forms))], rng, rng.uniform(0.02, 0.1))
        size = CANVAS * rng.uniform(0.28, 0.46)
        matrix = random_matrix(rng, turn=14, shear=0.35, stretch=0.22) * size
        painting.paint(
            canvas,
            transform(bent, matrix, np.array(_centre(rng, 0.06))),
            palette,
            width=size * rng.uniform(0.12, 0.45),
            outline=True,
        )
        phrases.append(f"a handwritten {name}")
    else:
        _glyph(canvas, str(value), palette, rng)
        phrases.append(f"a printed {name}")
    return Scene(painting.finish(canvas, rng, low_resolution=0.45), "digit", name, tuple(phrases))


def _letter(rng: np.random.Generator) -> Scene:
    letter = LETTERS[rng.integers(26)]
    capital = bool(rng.random() < 0.5)
    palette = painting.random_palette(rng, colourful=0.12)
    canvas = painting.new_canvas(palette, rng)
    _glyph(canvas, letter.upper() if capital else letter, palette, rng)
    size = "capital" if capital else "small"
    phrases = (f"the {size} letter {letter}", f"a {size} {letter}", f"the letter {_coloured(palette, letter)}")
    return Scene(painting.finish(canvas, rng, low_resolution=0.15), "letter", f"letter {letter}", phrases)


def _texture(rng: np.random.Generator) -> Scene:
    name = str(rng.choice(list(PATTERNS)))
    palette = painting.random_palette(rng)
    turn = rng.uniform(-90, 90) if rng.random() < 0.5 else rng.choice([0, 90]) + rng.normal(0, 8)
    x, y = plane(2 * painting.SIZE, rng, repeats=np.exp(rng.uniform(np.log(2.2), np.log(7))), turn=turn)
    height = PATTERNS[name](x, y, rng)[..., None]
    ground, body = (np.array(colour, float) for colour in (palette.background, palette.tones[0]))
    pixels = (ground + (body - ground) * height).astype(np.uint8)
    canvas = Image.fromarray(pixels).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    phrases = (f"a {name} texture", f"a {name} pattern", f"a {_coloured(palette, name)} surface")
    return Scene(painting.finish(canvas, rng), "texture", name, phrases)


def _group(rng: np.random.Generator) -> Scene:
    drawings = {**shapes(), **things()}
    name = str(rng.choice(list(drawings)))
    count = int(rng.integers(2, 5))
    palette = painting.random_palette(rng)
    canvas = painting.new_canvas(palette, rng)
    quarters = rng.permutation(4)[:count]
    for quarter in quarters:
        centre = tuple((0.27 + 0.46 * (quarter >> shift & 1) + rng.uniform(-0.04, 0.04)) * CANVAS for shift in (0, 1))
        size = CANVAS * rng.uniform(0.14, 0.2)
        placed = _place(drawings[name], rng, centre=centre, size=size)
        painting.paint(canvas, placed, palette, width=3.0 + 0.06 * size, outline=False)
    plural = f"{_coloured(palette, name)}s"
    phrases = (f"{COUNTS[count]} {plural}", f"{COUNTS[count]} {plural} in a picture", f"a group of {plural}")
    return Scene(painting.finish(canvas, rng), "group", f"{COUNTS[count]} {name}s", phrases)


def _pair(rng: np.random.Generator) -> Scene:
    drawings = {**shapes(), **things()}
    first, second = (str(name) for name in rng.choice(list(drawings), 2, replace=False))
    palettes = [painting.random_palette(rng, colourful=1.0) for _ in range(2)]
    canvas = painting.new_canvas(palettes[0], rng)
    is_beside = bool(rng.random() < 0.5)
    for position, (name, palette) in enumerate(zip((first, second), palettes, strict=True)):
        along = 0.27 + 0.46 * position + rng.uniform(-0.03, 0.03)
        across = 0.5 + rng.uniform(-0.15, 0.15)
        centre = (along, across) if is_beside else (across, along)
        size = CANVAS * rng.uniform(0.17, 0.23)
        placed = _place(drawings[name], rng, centre=(centre[0] * CANVAS, centre[1] * CANVAS), size=size)
        painting.paint(canvas, placed, palette, width=3.0 + 0.06 * size, outline=False)
    relation = "left of" if is_beside else "above"
    nouns = [_coloured(palette, name) for palette, name in zip(palettes, (first, second), strict=True)]
    phrases = (
        f"a {nouns[0]} {relation} a {nouns[1]}",
        f"a {first} {relation} a {second}",
        f"a {nouns[0]} and a {nouns[1]}",
    )
    return Scene(painting.finish(canvas, rng), "pair", f"{first} and {second}", phrases)


KINDS: Mapping[str, tuple[float, Callable[[np.random.Generator], Scene]]] = {
    "emoji": (0.46, _emoji),
    "digit": (0.2, _digit),
    "garment": (0.14, partial(_object_scene, "garment", wardrobe)),
    "thing": (0.07, partial(_object_scene, "thing", things)),
    "letter": (0.04, _letter),
    "texture": (0.04, _texture),
    "shape": (0.02, partial(_object_scene, "shape", shapes)),
    "pair": (0.02, _pair),
    "group": (0.01, _group),
}


def scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the endless collection `seed`."""
    rng = np.random.default_rng((seed, index))
    weights = np.array([weight for weight, _ in KINDS.values()])
    kind = list(KINDS)[rng.choice(len(KINDS), p=weights / weights.sum())]
    return KINDS[kind][1](rng)
