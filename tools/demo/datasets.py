"""Packs the demo datasets into the files that the package ships.

    python -m tools.demo.datasets --archives=clipbias/assets/demo_datasets

Digits are scikit-learn's, emoji come from the npm registry (`tools/demo/icons.py`), Fashion-MNIST is read from
`--fashion_mnist`, where Debian's package `dataset-fashion-mnist` puts it. The demo model has seen drawings of digits,
clothes and things, and emoji in other styles, but none of these images and none of these emoji sets. Compressing takes
most of the time, a few minutes on two cores.
"""

import concurrent.futures
import functools
import gzip
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
from clipbias.io import atomic_path
from tools.demo import concepts, icons

FLAGS = flags.FLAGS
flags.DEFINE_string("archives", "clipbias/assets/demo_datasets", "Folder that receives an archive for each dataset.")
flags.DEFINE_string("fashion_mnist", "/usr/share/datasets/fashion-mnist", "Folder of Fashion-MNIST's four files.")
flags.DEFINE_integer("processes", 2, "Processes that draw and compress.", lower_bound=1)

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FASHION_NAMES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclass(frozen=True)
class DemoDataset:
    """A dataset whose images are made on demand.

    Attributes:
      class_names: The name of each label.
      template: The prompt with one `{}` for the class name.
      sizes: Images per class of each split. Over a thousand test images keep an accuracy's binomial error below 1.5
        points.
      image: `(split, label, index)` to uint8 `[R, R, 3]`. The index counts the images of the whole split, which are
        ordered by class.
      quality: Of WebP; 100 is lossless.
      side: What an image is enlarged to when it is read; None leaves it as it is packed.
    """

    class_names: tuple[str, ...]
    template: str
    sizes: Mapping[str, int]
    image: Callable[[str, int, int], np.ndarray]
    quality: int = 100
    side: int | None = None

    def images(self) -> Iterator[tuple[str, str, int, int]]:
        """Every image's key with its split, label and index."""
        for split, size in self.sizes.items():
            for index, label in enumerate(np.repeat(np.arange(len(self.class_names)), size).tolist()):
                yield f"{split}/{self.class_names[label]}/{index:04d}.webp", split, label, index


def _in_turn(order: np.ndarray, labels: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """For each split the indices of its images, by class, taken from `order` one split after the other."""
    by_class = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    by_split = {}
    start = 0
    for split, size in sizes.items():
        by_split[split] = np.concatenate([indices[start : start + size] for indices in by_class])
        start += size
    return by_split


@functools.cache
def digits() -> DemoDataset:
    """Handwritten digits of the UCI repository, scanned at 8 x 8 pixels, as scikit-learn ships them.

    The file is ordered by writer; a fixed shuffle spreads the writers over the splits.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scans = np.clip(bunch.images * (255 / 16), 0, 255).round().astype(np.uint8)
    sizes = {"train": 20, "val": 12, "test": 112}
    by_split = _in_turn(np.random.default_rng(0).permutation(len(scans)), bunch.target, sizes)
    return DemoDataset(
        DIGIT_NAMES,
        "a photo of the digit {}.",
        sizes,
        lambda split, _, index: np.repeat(scans[by_split[split][index]][..., None], 3, axis=-1),
        side=48,
    )


def idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped file in the format of MNIST: its rank and shape, then its numbers."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


@functools.cache
def fashion() -> DemoDataset:
    """The first images of each class of Fashion-MNIST; its training images are train and val."""
    folder = Path(FLAGS.fashion_mnist)
    arrays = {}
    for part in ("train", "t10k"):
        arrays[part] = idx(folder / f"{part}-images-idx3-ubyte.gz"), idx(folder / f"{part}-labels-idx1-ubyte.gz")
    places = {"train": ("train", 20), "val": ("train", 40), "test": ("t10k", 112)}
    by_split = {}
    for part, (_, labels) in arrays.items():
        sizes = {split: size for split, (source, size) in places.items() if source == part}
        by_split.update(_in_turn(np.arange(len(labels)), labels, sizes))

    def image(split: str, _: int, index: int) -> np.ndarray:
        picture = arrays[places[split][0]][0][by_split[split][index]]
        return np.repeat(picture[..., None], 3, axis=-1)

    return DemoDataset(FASHION_NAMES, "a photo of a {}.", {split: size for split, (_, size) in places.items()}, image)


def emoji(style: str, sizes: Mapping[str, int]) -> DemoDataset:
    """Stickers of one set of emoji, of the classes of `concepts.CLASSES`; every icon of a class in turn."""
    names = tuple(concepts.CLASSES)
    number = list(icons.HELD_OUT).index(style)

    def image(split: str, label: int, index: int) -> np.ndarray:
        pictures = icons.glyphs(style, tuple(concepts.CLASS_OF))
        members = concepts.CLASSES[names[label]]
        rng = np.random.default_rng((3, number, ("train", "val", "test").index(split), index))
        return icons.sticker(pictures[members[index % len(members)]], rng, size=64)

    return DemoDataset(names, "a picture of a {}.", sizes, image, quality=85)


TEST_ONLY = {"test": 19}
DATASETS: Mapping[str, Callable[[], DemoDataset]] = {
    "digits": digits,
    "fashion": fashion,
    "emoji": functools.cache(lambda: emoji("twemoji", {"train": 20, "val": 8, **TEST_ONLY})),
    "emoji_outlined": functools.cache(lambda: emoji("openmoji", TEST_ONLY)),
    "emoji_glossy": functools.cache(lambda: emoji("fluent-emoji", TEST_ONLY)),
    "emoji_black": functools.cache(lambda: emoji("fluent-emoji-high-contrast", TEST_ONLY)),
}


def compress(name: str, arguments: tuple[str, int, int], *, method: int = 6) -> bytes:
    """One image of dataset `name` as WebP; `method` 6 is the smallest and slowest, 0 the fastest."""
    dataset = DATASETS[name]()
    buffer = io.BytesIO()
    pixels = Image.fromarray(dataset.image(*arguments))
    lossless = dataset.quality == 100
    pixels.save(buffer, "WEBP", lossless=lossless, quality=dataset.quality, method=method, exact=lossless)
    return buffer.getvalue()


def pack(path: Path, dataset: DemoDataset, images: Sequence[bytes]) -> None:
    """Writes an archive that `clipbias.data.demo` reads: a description, and the images in the order of their keys."""
    names = [DESCRIPTION, *(key for key, *_ in dataset.images())]
    facts: dict[str, object] = {"class_names": dataset.class_names, "template": dataset.template}
    if dataset.side is not None:
        facts["side"] = dataset.side
    description = json.dumps(facts, indent=2)
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
