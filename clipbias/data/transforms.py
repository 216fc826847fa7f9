"""Image bytes to model-sized pixels, equal to torchvision's transforms on PIL images.

Every resampling is Pillow's own bicubic filter with antialiasing, so that, given the same crop, the pixels
equal those of `torchvision.transforms.RandomResizedCrop`, `Resize` and `CenterCrop` on a PIL image to the
bit. Arrays are uint8 RGB; scaling and normalisation happen with the model.
"""

import hashlib
import io
import math

import numpy as np
from PIL import Image

from clipbias.data.augmix import augmix
from clipbias.errors import ClipbiasError, UnreadableImage

SCALE = (0.08, 1.0)  # share of the image area that a training crop covers
RATIO = (3 / 4, 4 / 3)  # width over height of a training crop
ATTEMPTS = 10
LONGEST = 32  # of an image that is longer for its width, evaluation sees the middle part only
# What is decoded, whatever the file's name says. Pillow knows more formats, but hands some of them, such as PostScript,
# to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM")


class WholeSide(int):
    """The side R of a model that takes the whole image, resized to a square without a crop: SigLIP's."""

    resampling = Image.Resampling.BICUBIC


class BilinearSide(WholeSide):
    """The same for SigLIP 2."""

    resampling = Image.Resampling.BILINEAR


# An image as Pillow holds it, in mode "RGB", or its pixels, uint8 [h, w, 3].
Picture = Image.Image | np.ndarray


def decode(encoded: bytes, path: str) -> np.ndarray:
    """Encoded image to uint8 [h, w, 3]; arguments and errors as of `decode_picture`."""
    return np.asarray(decode_picture(encoded, path))


def decode_picture(encoded: bytes, path: str) -> Image.Image:
    """Encoded image to one of Pillow's in mode "RGB", whose pixels are copied once less if it is used only once.

    As in the public CLIP adaptation code, this is `Image.open(...).convert("RGB")` and little more (`as_rgb`): the EXIF
    orientation is not applied, transparency is dropped, an animation gives its first frame.

    Args:
      encoded: The file's bytes, in one of `FORMATS`.
      path: Of the file, or what messages call it.

    Raises:
      UnreadableImage: the bytes are not a whole image.
    """
    if not encoded:
        raise UnreadableImage(path, f"the image {path} is empty (0 bytes); replace the file or skip unreadable images.")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            return as_rgb(image)
    # A damaged file makes Pillow's decoders raise nearly anything, from OSError to struct.error.
    except Exception as error:
        reason = str(error).replace("<_io.BytesIO object at ", "<").split("<")[0].strip() or type(error).__name__
        raise UnreadableImage(
            path, f"the image {path} cannot be decoded ({reason}); replace the file or skip unreadable images."
        ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of Pillow's in mode "RGB", by its own conversion.

    But for grey levels of 16 bits, which that cuts off at 255, so that such a picture is white: of these the upper
    eight bits count, as Pillow itself reads colours of 16 bits.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def check_format(encoded: bytes, key: str) -> None:
    """Raises `ClipbiasError` unless the bytes begin as an image of `FORMATS` does; the pixels are not looked at."""
    try:
        Image.open(io.BytesIO(encoded), formats=FORMATS).close()
    except Exception as error:
        raise ClipbiasError(f"{key} is not an image; replace the file.") from error


def random_resized_crop_box(
    rng: np.random.Generator, height: int, width: int, smallest: float = SCALE[0]
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) inside an image, by torchvision's rule.

    Ten tries of a random area, at least the share `smallest` of the image's, and a log-uniform aspect ratio; if none
    fits, the largest central box whose aspect ratio is in range.
    """
    area = height * width
    for _ in range(ATTEMPTS):
        target_area = area * rng.uniform(smallest, SCALE[1])
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        box_width = round(math.sqrt(target_area * aspect))
        box_height = round(math.sqrt(target_area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width / height < RATIO[0]:
        box_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        box_width = round(height * RATIO[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_crop(
    image: Picture,
    box: tuple[int, int, int, int],
    image_size: int,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Cuts `box` (top, left, height, width) out of `image` [h, w, 3] and resizes it to [R, R, 3]."""
    top, left, height, width = box
    # The copy keeps Pillow from seeing pixels outside the box: resize(box=...) would let the filter reach them.
    if isinstance(image, np.ndarray):
        cut = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    else:
        cut = image.crop((left, top, left + width, top + height))
    return np.asarray(cut.resize((image_size, image_size), resampling))


def train_image(
    image: Picture,
    rng: np.random.Generator,
    image_size: int,
    smallest: float = SCALE[0],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Random resized crop and horizontal flip with probability one half: [h, w, 3] to [R, R, 3], uint8."""
    box = random_resized_crop_box(rng, *height_and_width(image), smallest)
    cropped = resized_crop(image, box, image_size, resampling)
    return cropped[:, ::-1] if rng.random() < 0.5 else cropped


def test_image(image: Picture, image_size: int) -> np.ndarray:
    """Shorter side to R, centre crop: [h, w, 3] to [R, R, 3], uint8. Equal to CLIP's own preprocessing.

    Of a `WholeSide` the whole image, whose proportions change, equal to SigLIP's.

    An image that is over `LONGEST` times as long as wide is cut to that first.
    """
    height, width = height_and_width(image)
    short, long = min(height, width), max(height, width)
    if long > LONGEST * short:
        # Only the middle is looked at, but the whole would be resized: a line of pixels would fill the memory.
        first = (long - LONGEST * short) // 2
        middle, pixels = slice(first, first + LONGEST * short), np.asarray(image)
        return test_image(pixels[middle] if height > width else pixels[:, middle], image_size)
    picture = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if isinstance(image_size, WholeSide):
        return np.asarray(picture.resize((image_size, image_size), image_size.resampling))
    resized_long = int(image_size * long / short)
    size = (image_size, resized_long) if width <= height else (resized_long, image_size)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    left = round((size[0] - image_size) / 2)
    top = round((size[1] - image_size) / 2)
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))


def test_views(image: Picture, image_size: int, crops: int, *, mixed: bool = False) -> np.ndarray:
    """`test_image` and random resized crops of the whole image, flipped or not: [h, w, 3] to [1 + crops, R, R, 3].

    The crops are bilinear, as TPT's are (Shu et al. 2022), and depend on the image's pixels alone: the same image has
    the same views wherever it lies. They are uint8, or where AugMix has `mixed` each with distortions of it, all views
    are float32 of the same range.
    """
    image = np.asarray(image)
    rng, bilinear = _own_rng(image, b"views"), Image.Resampling.BILINEAR
    cropped = [train_image(image, rng, image_size, resampling=bilinear) for _ in range(crops)]
    if mixed:
        rng = _own_rng(image, b"augmix")
        cropped = [augmix(crop, rng) for crop in cropped]
    return np.stack([test_image(image, image_size), *cropped])


def height_and_width(image: Picture) -> tuple[int, int]:
    """Of an image, in pixels."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _own_rng(image: np.ndarray, use: bytes) -> np.random.Generator:
    """Draws that depend on the pixels of an image and on what they are for."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16, salt=use).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
