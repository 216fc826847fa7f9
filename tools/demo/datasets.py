"""Draws the demo datasets and packs them into the files that the package ships.

    python -m tools.demo.datasets --archives=clipbias/assets/demo_datasets

The demo model has seen digits, things and patterns, but none of these images and none of these styles: the digits are
scans of people's handwriting, and the drawing code of sketches and reliefs (`pencil`, `carving`) is used here only.
Compressing takes most of the time, a few minutes on two cores.
"""

import concurrent.futures
import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from PIL import Image

from clipbias.data.demo import DESCRIPTION
from clipbias.files import atomic_path
from tools.demo.carving import relief
from tools.demo.outlines import shapes
from tools.demo.patterns import PATTERNS
from tools.demo.pencil import sketch
from tools.demo.pictures import things

FLAGS = flags.FLAGS
flags.DEFINE_string("archives", "clipbias/assets/demo_datasets", "Folder that receives an archive for each dataset.")
flags.DEFINE_integer("processes", 2, "Processes that draw and compress.", lower_bound=1)

SPLIT_SIZES = {"train": 20, "val": 8, "test": 35}  # images per class; 16 shots and 4 to spare

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPE_NAMES = ("boat", "bottle", "car", "cup", "fish", "heart", "house", "star", "tree", "umbrella")
TEXTURE_NAMES = ("brick", "checkered", "cracked", "dotted", "grid", "honeycomb", "scaly", "striped", "wavy", "zigzag")


@dataclass(frozen=True)
class DrawnDataset:
    """A dataset whose images are drawn on demand.

    Attributes:
      class_names: The name of each label.
      template: The prompt with one `{}` for the class name.
      image: `(split, label, index)` to uint8 `[64, 64, 3]`. The index counts the images of the whole split, which are
        ordered by class.
    """

    class_names: tuple[str, ...]
    template: str
    image: Callable[[str, int, int], np.ndarray]

    def images(self) -> Iterator[tuple[str, str, int, int]]:
        """Every image's key with its split, label and index."""
        for split, size in SPLIT_SIZES.items():
            for index, label in enumerate(np.repeat(np.arange(len(self.class_names)), size).tolist()):
                yield f"{split}/{self.class_names[label]}/{index:04d}.png", split, label, index


@functools.cache
def digits() -> DrawnDataset:
    """Handwritten digits of the UCI repository, scanned at 8 x 8 pixels, as scikit-learn ships them.

    The file is ordered by writer; a fixed shuffle spreads the writers over the splits.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scans = np.clip(bunch.images * (255 / 16), 0, 255).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(scans))
    by_class = [order[bunch.target[order] == label] for label in range(len(DIGIT_NAMES))]
    chosen, start = {}, 0
    for split, size in SPLIT_SIZES.items():
        chosen[split] = np.concatenate([indices[start : start + size] for indices in by_class])
        start += size
    return DrawnDataset(
        DIGIT_NAMES, "a photo of the digit {}.", lambda split, _, index: enlarge(scans[chosen[split][index]])
    )


def enlarge(scan: np.ndarray, size: int = 64) -> np.ndarray:
    """An `[8, 8]` scan as `[size, size, 3]`, smooth between its pixels, so that crops of it have detail to show."""
    image = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(image)[..., None], 3, axis=-1)


def _random(dataset: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng((dataset, list(SPLIT_SIZES).index(split), index))


@functools.cache
def sketches() -> DrawnDataset:
    """Pencil sketches of shapes and things."""
    drawings = {**shapes(), **things()}

    def draw(split: str, label: int, index: int) -> np.ndarray:
        return sketch(drawings[SHAPE_NAMES[label]], _random(1, split, index))

    return DrawnDataset(SHAPE_NAMES, "a drawing of a {}.", draw)


@functools.cache
def reliefs() -> DrawnDataset:
    """Patterns carved into stone, wood and clay, lit from one side."""

    def draw(split: str, label: int, index: int) -> np.ndarray:
        return relief(PATTERNS[TEXTURE_NAMES[label]], _random(2, split, index))

    return DrawnDataset(TEXTURE_NAMES, "a photo of a {} texture.", draw)


DATASETS: Mapping[str, Callable[[], DrawnDataset]] = {"digits": digits, "shapes": sketches, "textures": reliefs}


def compress(name: str, arguments: tuple[str, int, int], *, method: int = 6) -> bytes:
    """One image of dataset `name` as lossless WebP; `method` 6 is the smallest and slowest, 0 the fastest."""
    buffer = io.BytesIO()
    pixels = Image.fromarray(DATASETS[name]().image(*arguments))
    pixels.save(buffer, "WEBP", lossless=True, quality=100, method=method, exact=True)
    return buffer.getvalue()


def pack(path: Path, dataset: DrawnDataset, images: Sequence[bytes]) -> None:
    """Writes an archive that `clipbias.data.demo` reads: a description, and the images in the order of their keys."""
    names = [DESCRIPTION, *(key for key, *_ in dataset.images())]
    description = json.dumps({"class_names": dataset.class_names, "template": dataset.template}, indent=2)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in zip(names, [description.encode(), *images], strict=True):
            archive.writestr(zipfile.ZipInfo(name), content)  # with a fixed date: the same images, the same file


def main(_: list[str]) -> None:
    for name, make in DATASETS.items():
        dataset = make()
        with concurrent.futures.ProcessPoolExecutor(FLAGS.processes) as pool:
            arguments = [place for _, *place in dataset.images()]
            images = list(pool.map(compress, [name] * len(arguments), arguments, chunksize=15))
        path = Path(FLAGS.archives) / f"{name}.zip"
        pack(path, dataset, images)
        logging.info("%s: %d images, %.2f MB", path, len(images), path.stat().st_size / 1e6)


if __name__ == "__main__":
    app.run(main)
