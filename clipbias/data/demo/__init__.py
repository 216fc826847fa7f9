"""Three small image sets that need no download: real handwritten digits, sketches on squared paper, lit textures.

The demo model has seen digits, things and patterns, but none of these images and none of these styles: the digits are
scans of people's handwriting, and the drawing code of sketches and reliefs is used here only.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from clipbias.data.dataset import Dataset, Split
from clipbias.data.demo.carving import relief
from clipbias.data.demo.outlines import shapes
from clipbias.data.demo.painting import png
from clipbias.data.demo.patterns import PATTERNS
from clipbias.data.demo.pencil import sketch
from clipbias.data.demo.pictures import things
from clipbias.errors import ClipbiasError

NAMES = ("digits", "shapes", "textures")
SPLIT_SIZES = {"train": 20, "val": 8, "test": 35}  # images per class of the drawn sets; 16 shots and 4 to spare

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPE_NAMES = ("boat", "bottle", "car", "cup", "fish", "heart", "house", "star", "tree", "umbrella")
TEXTURE_NAMES = ("brick", "checkered", "cracked", "dotted", "grid", "honeycomb", "scaly", "striped", "wavy", "zigzag")


def load(name: str) -> Dataset:
    """One of the demo datasets: "demo/digits", "demo/shapes", "demo/textures".

    Raises:
      ClipbiasError: there is no such demo dataset.
    """
    makers = {"digits": digits, "shapes": sketches, "textures": reliefs}
    short = name.removeprefix("demo/")
    if short not in makers:
        known = ", ".join(f"demo/{known}" for known in makers)
        raise ClipbiasError(f"there is no demo dataset {name!r}; known are {known}.")
    return makers[short]()


def _split(
    name: str, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], draw: Callable[[int], np.ndarray]
) -> Split:
    """A split whose images come from `draw(index)` when they are read."""
    keys = tuple(f"{name}/{class_names[label]}/{index:04d}.png" for index, label in enumerate(labels))

    @functools.cache
    def read(index: int) -> bytes:
        return png(draw(index))

    return Split(keys, np.asarray(labels, np.int32), read)


def digits() -> Dataset:
    """Handwritten digits of the UCI repository, scanned at 8 x 8 pixels, as scikit-learn ships them.

    The file is ordered by writer; a fixed shuffle spreads the writers over the splits.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scans = np.clip(bunch.images * (255 / 16), 0, 255).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(scans))
    by_class = [order[bunch.target[order] == label] for label in range(len(DIGIT_NAMES))]
    splits, start = {}, 0
    for split_name, size in SPLIT_SIZES.items():
        chosen = np.concatenate([indices[start : start + size] for indices in by_class])
        start += size

        def draw(index: int, chosen: np.ndarray = chosen) -> np.ndarray:
            return enlarge(scans[chosen[index]])

        splits[split_name] = _split(split_name, bunch.target[chosen], DIGIT_NAMES, draw)
    return Dataset("demo/digits", DIGIT_NAMES, "a photo of the digit {}.", splits)


def enlarge(scan: np.ndarray, size: int = 64) -> np.ndarray:
    """An `[8, 8]` scan as `[size, size, 3]`, smooth between its pixels, so that crops of it have detail to show."""
    from PIL import Image

    image = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(image)[..., None], 3, axis=-1)


def _drawn(
    name: str, class_names: Sequence[str], template: str, draw: Callable[[str, np.random.Generator], np.ndarray]
) -> Dataset:
    """A dataset whose image `index` of a split is a function of its name, the split and the index."""
    splits = {}
    for number, (split_name, size) in enumerate(SPLIT_SIZES.items()):
        labels = np.repeat(np.arange(len(class_names)), size)

        def draw_one(index: int, number: int = number, labels: np.ndarray = labels) -> np.ndarray:
            rng = np.random.default_rng((NAMES.index(name), number, index))
            return draw(class_names[labels[index]], rng)

        splits[split_name] = _split(split_name, labels, class_names, draw_one)
    return Dataset(f"demo/{name}", tuple(class_names), template, splits)


def sketches() -> Dataset:
    """Pencil sketches of shapes and things."""
    drawings = {**shapes(), **things()}
    return _drawn("shapes", SHAPE_NAMES, "a drawing of a {}.", lambda name, rng: sketch(drawings[name], rng))


def reliefs() -> Dataset:
    """Patterns carved into stone, wood and clay, lit from one side."""
    return _drawn("textures", TEXTURE_NAMES, "a photo of a {} texture.", lambda name, rng: relief(PATTERNS[name], rng))
