"""Pictures as people have them (files, PIL images, arrays, lists of these), and labelled ones as a split."""

import hashlib
import io
import os
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from clipbias.checks import shown
from clipbias.data.dataset import Split
from clipbias.data.files import file_sizes, read_image
from clipbias.data.images import Images
from clipbias.data.transforms import as_rgb, decode_picture, turned_upright
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.io import data_path, is_remote


class HasArray(Protocol):
    """An array: NumPy's, JAX's, or a tensor of torch."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...


# What functions for users take: a picture or several; the class of each, by number or by name.
Picture: TypeAlias = str | os.PathLike | Image.Image | HasArray
Pictures: TypeAlias = Picture | Sequence[Picture]
Labels: TypeAlias = Sequence[int] | Sequence[str] | HasArray

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_WHAT = (
    "give a path, a PIL image, a uint8 array [h, w, 3] (levels 0 to 255), or a list or an array [B, h, w, 3] of them"
)


def is_path(image: object) -> TypeGuard[str | os.PathLike]:
    """Whether an image is given as the name of its file."""
    return isinstance(image, str | os.PathLike)


def as_array(images: object) -> Any:
    """Arrays of JAX and tensors of torch as NumPy arrays, anything else as it is.

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


def list_images(pictures: Pictures) -> tuple[Sequence[Picture], bool]:
    """The pictures as a sequence, and whether it was a single one.

    An array `[h, w, 3]` (or `[h, w]`, grey) is one picture, `[B, h, w, 3]` (or `[B, h, w]`) are several. Raises
    `ClipbiasError` if it is nothing of the kind.
    """
    images = as_array(pictures)
    if is_path(images) and (folder := data_path(images)).is_dir():
        raise ClipbiasError(
            f"the images are the folder {folder}; give its files in the order of the results, such as "
            f"sorted(pathlib.Path({str(folder)!r}).glob('*.jpg'))."
        )
    if is_path(images) or isinstance(images, Image.Image):
        return [images], True
    shape = getattr(images, "shape", None)
    if shape is None and isinstance(images, Sequence):
        return images, False
    if shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4))):
        return [images], True
    if shape is not None and len(shape) in (3, 4):
        return images, False
    what = shown(images) if shape is None else f"an array of shape {list(shape)}"
    raise ClipbiasError(f"the images are {what}; {_WHAT}.")


def to_picture(image: Picture, name: str = "the image") -> Image.Image | np.ndarray:
    """One picture, upright by its EXIF orientation, as uint8 RGB `[h, w, 3]` or as a Pillow image in its own mode.

    It is a path, a PIL image, or a uint8 array `[h, w, 3]`, `[h, w, 4]`, `[h, w, 1]` or `[h, w]`. Raises
    `UnreadableImage` if it cannot be read, `ClipbiasError` if it is no picture.
    """
    if is_path(image):
        path = data_path(image)
        return decode_picture(read_image(path), str(path), upright=True)
    if isinstance(image, Image.Image):
        try:
            image.load()
            return turned_upright(image)
        except OSError as error:  # Pillow reads a file when its pixels are first used
            raise UnreadableImage(name, f"{name} cannot be decoded ({error})") from error
    if not hasattr(image, "shape"):
        raise ClipbiasError(f"{name} is {shown(image)}; {_WHAT}.")
    array = np.asarray(as_array(image))
    check_levels(array, name)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        hint = "; channels come last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ClipbiasError(f"{name} has shape {list(array.shape)}; give [h, w, 3] or, of grey levels, [h, w]{hint}.")
    return array if array.shape[2:] == (3,) else Image.fromarray(array)


def check_levels(array: np.ndarray, name: str) -> None:
    """Raises `ClipbiasError` unless an array of pixels holds uint8 levels."""
    if array.dtype == np.uint8:
        return
    how = "image.round().astype('uint8'), or of a tensor image.round().byte()"
    if array.size and float(array.min()) < 0:
        how = "the picture itself and not what clip.preprocess made of it"
    elif array.size and float(array.max()) <= 1:
        how = "of levels from 0 to 1 (255 * image).round().astype('uint8'), or of a tensor (255 * image).round().byte()"
    raise ClipbiasError(f"{name} holds {array.dtype} numbers; give uint8 levels from 0 to 255: {how}.")


class UserImages(Images):
    """A user's pictures to be evaluated, without labels and without a cache.

    `errors` has the message by number of each picture that could not be read, for a caller that skips them.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures
        self.labels = np.zeros(len(pictures), np.int32)
        self.unreadable: dict[str, str] = {}
        self.errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def decoded(self, index: int) -> Image.Image | np.ndarray:
        """Picture `index`. Raises `ClipbiasError` where it is none, `UnreadableImage` where it cannot be read."""
        try:
            return to_picture(self.pictures[index], f"image {index}")
        except UnreadableImage as error:
            self.errors[index] = error.reason
            raise

    def note_unreadable(self, error: UnreadableImage) -> None:
        """Counts an image that a caller skips; the caller says so beside the others' results."""
        self.unreadable[error.path] = error.reason


def labelled_split(images: Pictures, labels: Labels, class_names: Sequence[str]) -> Split:
    """Pictures, as `list_images` takes them, with their classes, by number or by name, as a split.

    Files are read later. Raises `ClipbiasError` if there are not as many labels as images, or none, or a label is no
    class.
    """
    pictures, _ = list_images(images)
    for number, picture in enumerate(pictures):
        if hasattr(picture, "shape"):  # known before the training begins
            check_levels(as_array(picture), f"image {number}")
    numbers = label_numbers(labels, class_names)
    if len(pictures) != len(numbers) or not len(pictures):
        raise ClipbiasError(f"there are {len(pictures)} images and {len(numbers)} labels; give a label for each image.")
    keys = [_key(number, image) for number, image in enumerate(pictures)]
    paths = [str(image) for image in pictures if is_path(image)]
    relative = any(not is_remote(path) and not os.path.isabs(path) for path in paths)

    def read(index: int) -> bytes:
        image = pictures[index]
        if is_path(image):
            return read_image(data_path(image))
        picture = to_picture(image, f"image {index}")
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        file = io.BytesIO()  # written fast rather than small, in RGB where PNG lacks the mode
        (picture if picture.mode in PNG_MODES else as_rgb(picture)).save(file, format="PNG", compress_level=1)
        return file.getvalue()

    return Split(keys, numbers, read, source=os.getcwd() if relative else "", upright=True, contents=file_sizes)


def _key(number: int, image: Picture) -> str:
    """A picture's path, or its number with a hash of its pixels: pictures in memory are never taken for others."""
    if is_path(image):
        return str(image)
    try:
        picture = to_picture(image, f"image {number}")
    except UnreadableImage:  # of PIL, which reads a file when its pixels are first used
        return f"{number:06d}"
    facts: list[object] = [picture.shape] if isinstance(picture, np.ndarray) else [picture.mode, picture.size]
    if isinstance(picture, Image.Image):
        facts += [picture.getpalette(), picture.info.get("transparency")]
    digest = hashlib.blake2b(repr(facts).encode() + picture.tobytes(), digest_size=16)
    return f"{number:06d}-{digest.hexdigest()}"


def names_of_labels(labels: Labels) -> list[str]:
    """The classes that labels name, sorted. Raises `ClipbiasError` for none, and for numbers."""
    array = _label_array(labels)
    if not array.size:
        raise ClipbiasError("there are no labels; give images, and a label for each.")
    if array.dtype.kind != "U":
        raise ClipbiasError("the labels are no names, so the classes have none; give class_names, a name per number.")
    return sorted(set(array.tolist()))


def label_numbers(labels: Labels, class_names: Sequence[str]) -> np.ndarray:
    """Labels, given by number or by name, as int32 `[n]`. Raises `ClipbiasError` for one that is no class."""
    array = _label_array(labels)
    if array.dtype.kind == "U":
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = [name for name in array.tolist() if name not in numbers]
        if unknown:
            raise ClipbiasError(f"the label {unknown[0]!r} is no class; the classes are {shown(list(class_names))}.")
        return np.asarray([numbers[name] for name in array.tolist()], np.int32)
    if array.size and not 0 <= array.min() <= array.max() < len(class_names):
        raise ClipbiasError(
            f"labels go from {array.min()} to {array.max()}; there are {len(class_names)} classes, from 0 to "
            f"{len(class_names) - 1}."
        )
    return array.astype(np.int32)


def _label_array(labels: Labels) -> np.ndarray:
    if isinstance(labels, str):
        raise ClipbiasError(f"labels is the text {shown(labels)}; give a list.")
    try:
        array = np.asarray(as_array(labels))
    except ValueError as error:
        raise ClipbiasError(f"labels are {shown(labels)}; give numbers or names, [n].") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise ClipbiasError(
            f"labels have type {array.dtype} and shape {list(array.shape)}; give numbers or names, [n]."
        )
    return array
