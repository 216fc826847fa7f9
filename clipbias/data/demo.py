"""Small embedded image sets: handwritten digits, clothes, emoji, emoji in other styles (`tools/demo/datasets.py`)."""

import functools
import io
import json
import zipfile
from collections.abc import Sequence
from importlib import resources

import numpy as np
from PIL import Image

from clipbias.data.dataset import Dataset, Split
from clipbias.errors import ClipbiasError

MAIN = ("demo/digits", "demo/fashion", "demo/emoji")
# The classes of `demo/emoji` by other artists; test images only.
EMOJI = ("demo/emoji_outlined", "demo/emoji_glossy", "demo/emoji_black")
NAMES = (*MAIN, *EMOJI)
DESCRIPTION = "dataset.json"  # the first member of an archive; the others are images, named by their keys


def load(name: str, *, template: str | None = None) -> Dataset:
    """Opens a demo dataset of `NAMES`. Default template: its own. Raises `ClipbiasError` for an unknown name."""
    if name not in NAMES:
        raise ClipbiasError(f"there is no demo dataset {name!r}; known are {', '.join(NAMES)}.")
    # In memory: the archives have a few megabytes, and threads read from them at once.
    archive = _archive(name.removeprefix("demo/"))
    # The description names classes and template; keys are split/class/file.
    description = json.loads(archive.read(DESCRIPTION))
    class_names = tuple(description["class_names"])
    keys_of: dict[str, list[str]] = {}
    for key in archive.namelist()[1:]:
        keys_of.setdefault(key.partition("/")[0], []).append(key)

    def checksums(paths: Sequence[str]) -> list[int]:
        return [archive.getinfo(path.removeprefix(f"{name}/")).CRC for path in paths]

    side = description.get("side")

    def read(keys: Sequence[str], index: int) -> bytes:
        content = archive.read(keys[index])
        if side is None:
            return content
        # The archive has scans in their size, a tenth of the bytes. They are enlarged here, smoothly, so that crops
        # show more than a few squares.
        image = Image.open(io.BytesIO(content)).resize((side, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")  # not compressed: faster, and the same bytes with every library
        return buffer.getvalue()

    splits = {}
    for split_name, keys in keys_of.items():
        labels = np.array([class_names.index(key.split("/")[1]) for key in keys])
        splits[split_name] = Split(keys, labels, functools.partial(read, keys), source=name, contents=checksums)
    return Dataset(name, class_names, description["template"] if template is None else template, splits)


@functools.cache
def _archive(name: str) -> zipfile.ZipFile:
    content = resources.files("clipbias").joinpath("assets", "demo_datasets", f"{name}.zip").read_bytes()
    return zipfile.ZipFile(io.BytesIO(content))
