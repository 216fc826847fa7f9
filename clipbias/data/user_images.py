"""A user's pictures (files, PIL images, arrays, lists of these) and labels: the door through which all of them come."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from clipbias.checks import shown
from clipbias.data import transforms
from clipbias.data.dataset import Split, check_told_apart
from clipbias.data.files import common_folder, file_sizes, read_image
from clipbias.data.images import Images
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.identity import identity
from clipbias.io import data_path


class HasArray(Protocol):
    """An array: NumPy's, JAX's, a tensor of torch, or a column of pandas."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...


# What functions for users take: a picture or several; the class of each, by number or by name.
Picture: TypeAlias = str | os.PathLike | Image.Image | HasArray
Pictures: TypeAlias = Picture | Iterable[Picture] | Split
Labels: TypeAlias = Iterable[int] | Iterable[str] | HasArray

_WHAT = (
    "give a path, a PIL image, a uint8 array [h, w, 3] (levels 0 to 255), or a list or an array [B, h, w, 3] of them"
)
# Arrays that hold Python's objects or texts: lists of these.
_OBJECTS = "OUT"


def as_array(images: object) -> Any:
    """Arrays of JAX, tensors of torch and columns of pandas as NumPy arrays, anything else as it is.

    Raises `ClipbiasError` if NumPy has no such type of numbers.
    """
    if isinstance(images, np.ndarray | Image.Image) or not hasattr(images, "shape"):
        return images
    try:
        if hasattr(images, "detach"):
            # A tensor that has a gradient, or lies on another device, does not turn into an array by itself, and NumPy
            # has no bfloat16.
            tensor = images.detach().cpu()
            return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
        return np.asarray(images)
    except TypeError as error:
        raise ClipbiasError(f"the array holds numbers that NumPy lacks ({error}); give float32 or uint8.") from error


def _items(values: Any) -> list | None:
    """The elements of what has an order and is no array of numbers; `None` for anything else."""
    if isinstance(values, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(values, Iterable):
        return None
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def list_images(pictures: Pictures) -> tuple[list[Picture], bool]:
    """The pictures as a list, and whether it was a single one.

    An array `[h, w, 3]` (or `[h, w]`, grey) is one picture, `[B, h, w, 3]` (or `[B, h, w]`) are several. Raises
    `ClipbiasError` if it is nothing of the kind, or may be either.
    """
    images = as_array(pictures)
    if isinstance(images, str | os.PathLike) and (folder := data_path(images)).is_dir():
        raise ClipbiasError(
            f"the images are the folder {folder}; give its files in the order of the results, such as "
            f"sorted(pathlib.Path({str(folder)!r}).glob('*.jpg'))."
        )
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images], True
    shape = getattr(images, "shape", None)
    if shape is None or (images.dtype.kind in _OBJECTS and len(shape) == 1):
        if (items := _items(images)) is not None:
            return items, False
    elif len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 2, 3, 4)):
        return [images], True
    elif len(shape) == 3 and shape[0] in (3, 4):
        raise ClipbiasError(
            f"the images are an array of shape {list(shape)}, which may be a picture with its channels first, or "
            f"{shape[0]} grey pictures; give image.transpose(1, 2, 0), of a tensor image.permute(1, 2, 0), of the one, "
            "list(images) of the others."
        )
    elif len(shape) in (3, 4):
        return list(images), False
    what = shown(images) if shape is None else f"an array of shape {list(shape)}"
    raise ClipbiasError(f"the images are {what}; {_WHAT}.")


def _taken(image: Picture, name: str) -> str | bytes | UnreadableImage:
    """The path of a picture's file, or the pixels of one in memory as a file, so that no owner changes them later.

    Pixels are upright by EXIF's orientation. Pillow reads a file when its pixels are first used: if it cannot, an error
    stands in the picture's place. Raises `ClipbiasError` if it is no picture: a path, a PIL image, or a uint8 array
    `[h, w, 3]`, `[h, w, 4]`, `[h, w, 1]` or `[h, w]`.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if "://" in path:
            return path
        folder, file = os.path.split(os.path.expanduser(path))
        return os.path.join(os.path.realpath(folder), file)  # one name for a file, however its path is written
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:  # as of decoders: a damaged file raises nearly anything
            return UnreadableImage(name, f"{name} cannot be decoded ({error})")
        return _encoded(transforms.in_known_mode(transforms.turned_upright(image), name, image.format))
    array = as_array(image)
    if not isinstance(array, np.ndarray) or array.dtype.kind in _OBJECTS:
        raise ClipbiasError(f"{name} is {shown(image)}; {_WHAT}.")
    transforms.check_levels(array, name)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: image.transpose(1, 2, 0), of a tensor image.permute(1, 2, 0)"
        raise ClipbiasError(f"{name} has shape {list(array.shape)}; give [h, w, 3] or, of grey levels, [h, w]{hint}.")
    return _encoded(Image.fromarray(np.ascontiguousarray(array)))


def _encoded(picture: Image.Image) -> bytes:
    """A picture of a known mode as a file without loss: levels alone where they say all, else what has the mode."""
    file = io.BytesIO()
    kind = "PPM" if transforms.is_plain(picture) else "TIFF" if picture.mode == "CMYK" else "PNG"
    picture.save(file, format=kind, **({"compress_level": 1} if kind == "PNG" else {}))  # fast rather than small
    return file.getvalue()


def image_list(images: Pictures, labels: Labels | None = None, class_names: Sequence[str] = ()) -> Split:
    """Pictures, as `list_images` takes them, as a split: what predicts, trains, is evaluated and explained takes this.

    Files are read when they are used, pictures in memory are copied now. Names are those below the files' common
    folder. `labels` are classes by number or by name; without them all are 0, and a file may come twice. Raises
    `ClipbiasError` for what is no picture, a label that is no class, other numbers of images and labels, or none.
    """
    if isinstance(images, Split):
        if labels is not None:
            raise ClipbiasError("a dataset and its splits have labels of their own; leave `labels` out.")
        return images
    items = [_taken(image, f"image {number}") for number, image in enumerate(list_images(images)[0])]
    numbers = np.zeros(len(items), np.int32) if labels is None else label_numbers(labels, class_names)
    if len(items) != len(numbers) or (labels is not None and not items):
        raise ClipbiasError(f"there are {len(items)} images and {len(numbers)} labels; give a label for each image.")
    folder = common_folder([item for item in items if isinstance(item, str)])
    keys: dict[str, int] = {}
    for number, item in enumerate(items):
        if isinstance(item, str):
            key = item[len(folder) :]
        else:  # pictures in memory are never taken for others
            key = f"{number:06d}-{identity(item)[:32]}" if isinstance(item, bytes) else f"{number:06d}"
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
    """A user's pictures to be evaluated, without a cache.

    `errors` has the message by number of each picture that could not be read, for a caller that skips them.
    """

    def __init__(self, images: Pictures) -> None:
        super().__init__(image_list(images))
        self.errors: dict[int, str] = {}

    def decoded(self, index: int) -> transforms.Picture:
        """Picture `index`. Raises `UnreadableImage` where it cannot be read."""
        try:
            return super().decoded(index)
        except UnreadableImage as error:
            self.errors[index] = error.reason
            raise

    def note_unreadable(self, error: UnreadableImage) -> None:
        """Counts an image that a caller skips; the caller says so beside the others' results."""
        self.unreadable[error.path] = error.reason


def names_of_labels(labels: Labels) -> list[str]:
    """The classes that labels name, sorted. Raises `ClipbiasError` for none, for numbers, and for names alike."""
    array = label_array(labels)
    if not array.size:
        raise ClipbiasError("there are no labels; give images, and a label for each.")
    if array.dtype.kind != "U":
        raise ClipbiasError("the labels are no names, so the classes have none; give class_names, a name per number.")
    first: dict[str, str] = {}
    for number, name in enumerate(array.tolist()):
        first.setdefault(name, f"of image {number}")
    check_told_apart(first, "the labels")
    return sorted(first)


def label_numbers(labels: Labels, class_names: Sequence[str]) -> np.ndarray:
    """Labels, given by number or by name, as int32 `[n]`. Raises `ClipbiasError` for one that is no class."""
    array = label_array(labels)
    if array.dtype.kind == "U":
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = [name for name in array.tolist() if name not in numbers]
        if twice := [name for name in array.tolist() if class_names.count(name) > 1]:
            raise ClipbiasError(f"several classes are called {twice[0]!r}; give the numbers of classes as labels.")
        if unknown:
            raise ClipbiasError(f"the label {unknown[0]!r} is no class; the classes are {shown(list(class_names))}.")
        return np.asarray([numbers[name] for name in array.tolist()], np.int32)
    if array.size and not 0 <= array.min() <= array.max() < len(class_names):
        raise ClipbiasError(
            f"labels go from {array.min()} to {array.max()}; there are {len(class_names)} classes, from 0 to "
            f"{len(class_names) - 1}."
        )
    return array.astype(np.int32)


def is_missing(label: object) -> bool:
    """Whether a label is none: empty, NaN, or what pandas and databases have in its place."""
    if isinstance(label, float | np.floating):
        return bool(np.isnan(label))
    return label is None or type(label).__name__ == "NAType" or (isinstance(label, str) and not label.strip())


def label_array(labels: Labels) -> np.ndarray:
    """Labels as an array `[n]` of whole numbers or of names. Raises `ClipbiasError` for a missing or another one."""
    array = as_array(labels)
    if not isinstance(array, np.ndarray) or (array.ndim == 1 and array.dtype.kind not in "iu"):
        if (items := _items(array)) is None:
            raise ClipbiasError(f"labels is {shown(labels)}; give a list.")
        for number, item in enumerate(items):
            if is_missing(item):
                raise ClipbiasError(f"image {number} has no label ({shown(item)}); give it one, or leave it out.")
        names = sum(isinstance(item, str) for item in items)
        if 0 < names < len(items):
            raise ClipbiasError(f"labels are {shown(items)}; give numbers or names, not both.")
        try:
            array = np.asarray(items, str if names == len(items) else None)
        except ValueError as error:
            raise ClipbiasError(f"labels are {shown(labels)}; give numbers or names, [n].") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise ClipbiasError(
            f"labels have type {array.dtype} and shape {list(array.shape)}; give numbers or names, [n]."
        )
    return array
