"""Conversion of a user's pictures (files, PIL images, arrays, lists of these) and labels to splits."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from clipbias.checks import shown
from clipbias.data import transforms
from clipbias.data.dataset import Dataset, Split, check_told_apart
from clipbias.data.files import common_folder, file_sizes, read_image
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.identity import identity
from clipbias.io import data_path


class HasArray(Protocol):
    """An array of NumPy or JAX, a torch tensor, or a pandas column."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...


# Arguments of functions for users: a picture or several; classes by number or name.
Picture: TypeAlias = str | os.PathLike | Image.Image | HasArray
Pictures: TypeAlias = Picture | Iterable[Picture] | Split
Labels: TypeAlias = Iterable[int] | Iterable[str] | HasArray

_ADVICE = (
    "give a path, a PIL image, a uint8 array [h, w, 3] (levels 0 to 255), or a list or an array [B, h, w, 3] of them"
)
# Kinds of arrays of Python objects or strings, which are read as lists.
_OBJECTS = "OUT"


def check_no_table(value: object) -> None:
    """Raises `ClipbiasError` for a DataFrame of pandas or another library."""
    if hasattr(value, "columns") and len(getattr(value, "shape", ())) == 2:
        raise ClipbiasError(
            f"this is a table with the columns {shown([*map(str, value.columns)])}; give its column of pictures and "
            "its column of labels, as in clipbias.fit(clip, method, table['path'], table['label'])."
        )


def as_array(value: object) -> Any:
    """Converts arrays of JAX, torch tensors and pandas columns to NumPy; returns other objects unchanged."""
    check_no_table(value)
    if isinstance(value, np.ndarray | Image.Image) or not hasattr(value, "shape"):
        return value
    try:
        if hasattr(value, "detach"):
            # NumPy refuses tensors with a gradient or on another device, and has no bfloat16.
            tensor = value.detach().cpu()
            return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
        return np.asarray(value)
    except TypeError as error:
        raise ClipbiasError(f"the array holds numbers that NumPy lacks ({error}); give float32 or uint8.") from error


def _items(items: Any) -> list | None:
    """Returns the elements of an ordered collection; `None` for other objects."""
    if isinstance(items, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(items, Iterable):
        return None
    return items.tolist() if isinstance(items, np.ndarray) else list(items)


def list_images(pictures: Pictures) -> tuple[list[Picture], bool]:
    """Returns the pictures as a list, and whether only one was given: an array `[h, w, 3]`, or `[h, w]` for grey."""
    # `[B, h, w, 3]` and `[B, h, w]` are several pictures. Shapes that may be either are an error.
    images = as_array(pictures)
    # Results are in the order of the images, and a folder has none: the user chooses it.
    if isinstance(images, str | os.PathLike) and (folder := data_path(images)).is_dir():
        raise ClipbiasError(
            f"the images are the folder {folder}; give its files in the order of the results, such as "
            f"sorted(pathlib.Path({str(folder)!r}).glob('*.jpg'))."
        )
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images], True
    shape = getattr(images, "shape", None)
    # Generators and columns of paths are lists, too.
    if shape is None or (images.dtype.kind in _OBJECTS and len(shape) == 1):
        if (items := _items(images)) is not None:
            return items, False
    elif len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 2, 3, 4)):
        return [images], True
    elif len(shape) == 3 and shape[0] in (3, 4):
        raise ClipbiasError(
            f"the images are an array of shape {list(shape)}: a picture with its channels first, or {shape[0]} grey "
            "pictures. For a picture give image.transpose(1, 2, 0), or image.permute(1, 2, 0) of a tensor; for grey "
            "pictures list(images)."
        )
    elif len(shape) in (3, 4):
        return list(images), False
    if isinstance(images, Dataset):
        raise ClipbiasError(f"the images are the dataset {images.name}; give a split of it: dataset.split('test').")
    given = shown(images) if shape is None else f"an array of shape {list(shape)}"
    raise ClipbiasError(f"the images are {given}; {_ADVICE}.")


def _taken(image: Picture, name: str) -> str | bytes | UnreadableImage:
    """Returns a picture's path, its bytes as a file, or the error of an unreadable PIL image, raised at its use."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if "://" in path:
            return path
        folder, file = os.path.split(os.path.expanduser(path))
        # One name for a file, however its path is written. A file that is a link stays an entry of its name.
        return os.path.join(os.path.realpath(folder), file)
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:  # Pillow reads the file only now; damaged files raise many types
            return UnreadableImage(name, f"{name} cannot be decoded ({error})")
        return _encoded(transforms.in_known_mode(transforms.turned_upright(image), name, image.format))
    array = as_array(image)
    if not isinstance(array, np.ndarray) or array.dtype.kind in _OBJECTS:
        raise ClipbiasError(f"{name} is {shown(image)}; {_ADVICE}.")
    transforms.check_levels(array, name)
    # Pillow has no picture of one channel with an axis for it.
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: image.transpose(1, 2, 0), or image.permute(1, 2, 0) of a tensor"
        raise ClipbiasError(f"{name} has shape {list(array.shape)}; give [h, w, 3] or, for grey levels, [h, w]{hint}.")
    return _encoded(Image.fromarray(np.ascontiguousarray(array)))


def _encoded(picture: Image.Image) -> bytes:
    # Bytes cannot change later, as the caller's array could. PPM is not compressed, and the fastest; PNG has palettes
    # and transparency, TIFF has ink.
    file = io.BytesIO()
    kind = "PPM" if transforms.is_plain(picture) else "TIFF" if picture.mode == "CMYK" else "PNG"
    picture.save(file, format=kind, **({"compress_level": 1} if kind == "PNG" else {}))  # fast rather than small
    return file.getvalue()


def image_list(images: Pictures, labels: Labels | None = None, class_names: Sequence[str] = ()) -> Split:
    """Converts pictures, as `list_images` takes them, to a split.

    Files are read when they are used, pictures in memory are copied now. Keys are paths below the files' common folder.
    `labels` are classes by number or name; without them all are 0, and a file may occur twice. Raises `ClipbiasError`
    for other objects, unknown labels, or different numbers of images and labels.
    """
    if isinstance(images, Split):
        if labels is not None:
            raise ClipbiasError("a dataset and its splits have labels; leave `labels` out.")
        return images
    # Every picture is checked at once, before the first is used.
    items = [_taken(image, f"image {number}") for number, image in enumerate(list_images(images)[0])]
    given = None if labels is None else label_array(labels)
    numbers = np.zeros(len(items), np.int32) if given is None else label_numbers(given, class_names)
    if given is not None and given.dtype.kind != "U":
        # Of the classes "1", "2" and "3" the label 1 may be the first or the second.
        strings = [*map(str, given.tolist())]
        if {*strings} <= {*class_names} and strings != [class_names[number] for number in numbers.tolist()]:
            raise ClipbiasError(
                f"the labels {shown(given.tolist())} may be names of classes or their numbers, from 0 on; give strings."
            )
    if len(items) != len(numbers) or (labels is not None and not items):
        raise ClipbiasError(f"there are {len(items)} images and {len(numbers)} labels; give a label for each image.")
    folder = common_folder([item for item in items if isinstance(item, str)])
    keys: dict[str, int] = {}
    for number, item in enumerate(items):
        if isinstance(item, str):
            key = item[len(folder) :]
        else:
            # By number and content, so that pictures in memory are never taken for others, in this list or another.
            key = f"{number:06d}-{identity(item)[:32]}" if isinstance(item, bytes) else f"{number:06d}"
        # With labels, an image that is listed twice could train and test at once.
        if (other := keys.setdefault(key, number)) != number:
            if labels is not None:
                raise ClipbiasError(f"{folder}{key} is listed twice, as images {other} and {number}; list it once.")
            keys[f"{key} ({number})"] = number

    def read(index: int) -> bytes:
        item = items[index]
        if isinstance(item, UnreadableImage):
            raise item
        return item if isinstance(item, bytes) else read_image(data_path(item))

    return Split([*keys], numbers, read, source=folder, upright=True, contents=file_sizes)


class UserImages(Images):
    """A user's pictures without a cache; `errors` has messages by number for unreadable pictures."""

    def __init__(self, images: Pictures) -> None:
        super().__init__(image_list(images))
        self.errors: dict[int, str] = {}

    def decoded(self, index: int) -> transforms.Picture:
        """Returns picture `index`. Raises `UnreadableImage`."""
        try:
            return super().decoded(index)
        except UnreadableImage as error:
            self.errors[index] = error.reason
            raise

    def note_unreadable(self, error: UnreadableImage) -> None:
        """Records a skipped image without logging: the caller reports it beside the results of the others."""
        self.unreadable[error.path] = error.reason


def names_of_labels(labels: Labels) -> list[str]:
    """Returns the sorted names of labels. Raises `ClipbiasError` for no labels, numbers, and names of the same text."""
    array = label_array(labels)
    if not array.size:
        raise ClipbiasError("there are no labels; give images, and a label for each.")
    if array.dtype.kind != "U":
        raise ClipbiasError("the labels are no names, so the classes have none; give class_names, a name per number.")
    first_image: dict[str, str] = {}
    for number, name in enumerate(array.tolist()):
        first_image.setdefault(name, f"of image {number}")
    check_names(first_image, "the labels")
    return sorted(first_image)


def label_numbers(labels: Labels, class_names: Sequence[str]) -> np.ndarray:
    """Converts labels by number or name to int32 `[n]`. Raises `ClipbiasError` for an unknown label."""
    array = label_array(labels)
    if array.dtype.kind == "U":
        names = array.tolist()
        numbers = {name: number for number, name in enumerate(class_names)}
        # A name of two classes (ImageNet's "missile") does not say which one is meant.
        if twice := [name for name in names if class_names.count(name) > 1]:
            raise ClipbiasError(f"several classes are called {twice[0]!r}; give the numbers of classes as labels.")
        for row, name in enumerate(names):
            if name not in numbers:
                raise ClipbiasError(
                    f"the label {name!r} is no class (image {row}); the classes are {shown(list(class_names))}."
                )
        return np.asarray([numbers[name] for name in names], np.int32)
    if array.size and not 0 <= array.min() <= array.max() < len(class_names):
        raise ClipbiasError(
            f"labels go from {array.min()} to {array.max()}; there are {len(class_names)} classes, from 0 to "
            f"{len(class_names) - 1}."
        )
    return array.astype(np.int32)


def is_missing(label: object) -> bool:
    """Whether a label is missing: empty, NaN, `None`, or pandas' NA or NaT."""
    return not label.strip() if isinstance(label, str) else label is None or str(label) in ("nan", "<NA>", "NaT")


# Missing labels as strings, which NumPy and pandas make of them.
_AS_STRINGS = ("nan", "NaN", "NA", "<NA>", "NaT", "None")


def check_names(places: Mapping[str, str], owner: str) -> None:
    """Raises `ClipbiasError` for a missing label as a class, and as `check_told_apart`."""
    for name in _AS_STRINGS:
        if name in places:
            raise ClipbiasError(
                f"the label {name!r} ({places[name]}) stands for a missing one; give the image a label, or leave it "
                "out. A class of this name needs another, or class_names."
            )
    check_told_apart(places, owner)


def label_array(labels: Labels) -> np.ndarray:
    """Converts labels to an array `[n]` of whole numbers or names. Raises `ClipbiasError` for other labels."""
    array = as_array(labels)
    if not isinstance(array, np.ndarray) or (array.ndim == 1 and array.dtype.kind not in "iu"):
        if (items := _items(array)) is None:
            raise ClipbiasError(f"labels is {shown(labels)}; give a list.")
        for number, item in enumerate(items):
            if is_missing(item):
                raise ClipbiasError(f"image {number} has no label ({shown(item)}); give it one, or leave it out.")
        # NumPy would convert a mixture to strings, and 1 would become the class "1".
        names = sum(isinstance(item, str) for item in items)
        if 0 < names < len(items):
            raise ClipbiasError(f"labels are {shown(items)}; give numbers or names, not both.")
        try:
            array = np.asarray(items, str if names == len(items) else None)
        except ValueError as error:
            raise ClipbiasError(f"labels are {shown(labels)}; give numbers or names, [n].") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise ClipbiasError(f"labels are {array.dtype} {list(array.shape)}; give whole numbers or names, [n].")
    return array
