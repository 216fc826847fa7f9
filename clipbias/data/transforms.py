"""Image bytes to model-sized pixels, uint8 RGB; AugMix.

For the same crop, pixels equal those of torchvision's `RandomResizedCrop`, `Resize` and `CenterCrop` on a PIL image to
the bit: both resample with Pillow's antialiased filters. The model normalises (`clip.preprocess`).
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageOps

from clipbias.errors import ClipbiasError, UnreadableImage

SCALE = (0.08, 1.0)  # share of the image area that a training crop covers
RATIO = (3 / 4, 4 / 3)  # width over height of a training crop
ATTEMPTS = 10
MAX_ASPECT = 32  # longer over shorter side; evaluation cuts the middle out of longer images
# Formats that are decoded, by content and not by name. Pillow passes others, such as PostScript, to other programs.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF")


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Settings of resizing a picture and cutting out its centre, R x R pixels."""

    # Libraries differ in two places. OpenAI's code and open_clip resize a picture in its mode (with transparency or
    # palette), convert it to RGB afterwards, and round half a pixel of the margin to even. transformers converts to RGB
    # first, transparency to white, and rounds down.
    side: int  # R
    size: int | None = None  # side after resizing. Default: R, so that a square picture is not cut
    whole: bool = False  # whether the picture is squashed to a square; else its shorter side gets the size
    resampling: str = "bicubic"  # Pillow's name of the filter
    library: str = "open_clip"  # or "transformers"


# A Pillow image in any mode, or pixels, uint8 [h, w, 3].
Picture = Image.Image | np.ndarray

# HEIC and HEIF pictures of phones, read by the package `pillow-heif` (the extra `heif`).

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_FORMAT = "HEIF"  # in Pillow
HEIF_ADVICE = "pip install 'clipbias[heif]' to read HEIC pictures, or convert them to JPEG"

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_CONTAINERS = (b"mif1", b"msf1")  # containers that name their content among the compatible brands


def is_heif(encoded: bytes) -> bool:
    """Whether a file begins as HEIC files do."""
    if encoded[4:8] != b"ftyp":
        return False
    brand = encoded[8:12]
    return brand in _BRANDS or (brand in _CONTAINERS and any(name in encoded[16:64] for name in _BRANDS))


@functools.cache
def is_installed() -> bool:
    """Whether `pillow-heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def decode_picture(encoded: bytes, path: str, *, upright: bool = False) -> Image.Image:
    """Decodes an image, or the first frame of an animation, to a Pillow image in one of `MODES`.

    Formats are `PICTURE_FORMATS`, and HEIC with `pillow-heif`; `path` is a name for messages. With `upright`, the image
    is turned by its EXIF orientation. Raises `UnreadableImage` for bytes that are not a complete image.
    """
    # The benchmark's code ignores EXIF, so its images stay as stored; a user's pictures are turned as the camera was.
    if not encoded:
        raise UnreadableImage(path, f"the image {path} is empty (0 bytes)")
    formats: tuple[str, ...] = PICTURE_FORMATS
    try:
        if is_heif(encoded):
            import pillow_heif

            pillow_heif.register_heif_opener()
            formats = (HEIF_FORMAT,)
        # Pillow opens lazily: only `load` finds a file that is cut short.
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            image.load()
            return in_known_mode(turned_upright(image) if upright else image, f"the image {path}", image.format)
    except ClipbiasError as error:
        raise UnreadableImage(path, str(error).rstrip(".")) from error
    except ImportError as error:
        raise UnreadableImage(path, f"the image {path} is HEIC; {HEIF_ADVICE}") from error
    # Pillow's decoders raise many types for damaged files, from OSError to struct.error.
    except Exception as error:
        reason = str(error).replace("<_io.BytesIO object at ", "<").split("<")[0].strip() or type(error).__name__
        raise UnreadableImage(path, f"the image {path} cannot be decoded ({reason})") from error


def turned_upright(image: Image.Image) -> Image.Image:
    """Turns and mirrors a Pillow image by its EXIF orientation; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise many types, as damaged files do
        return image


# Modes of decoded pictures: they are kept, since libraries convert them to RGB differently. Others become one of them.
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
_MODE_OF = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}


def in_known_mode(image: Image.Image, name: str, file_format: str | None = None) -> Image.Image:
    """Converts a Pillow image to one of `MODES`. Raises `ClipbiasError` for levels of 32 bits beyond 0, 1, ..., 255."""
    if image.mode in MODES:
        return image
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.convert(_MODE_OF.get(image.mode, "RGB"))
    # Pillow's conversion would cut levels off at 255. Levels of 16 bits are divided by 257, so that black and white
    # stay, and rounded; Pillow reads those of PPM as 16 bits. Levels of 32 bits have no known range.
    levels = np.asarray(image)
    if image.mode.startswith("I;16") or file_format == "PPM":
        return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    with np.errstate(invalid="ignore"):
        whole = levels.astype(np.uint8)
    if (whole != levels).any() or levels.max() == 1:  # numbers from 0 to 1 are shares of white
        check_levels(levels, name)
    return Image.fromarray(whole)


_LARGEST_NORMALISED = 3.0  # beyond all numbers of models' preprocessing
_OVERSHOOT = 0.1  # share by which bicubic resizing leaves the range of levels


def level_advice(array: np.ndarray) -> str | None:
    """Returns the calls that convert an array to uint8 levels, for a message; `None` if it holds no levels."""
    # Floating-point levels that were resized may lie a little outside their range. Normalised images nearly always have
    # clearly negative values, of pixels darker than the mean.
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (-1.0, 1.0)
    over = 0.0 if array.dtype.kind in "biu" else _OVERSHOOT
    # Advice for NumPy and torch, which convert differently.
    ends = "{}.round().astype('uint8'), or of a tensor {}.round().byte()"
    of_16_bits = f"of 16-bit levels {ends.format('(image / 257)', '(image.float() / 257)')}"
    if -over <= lowest and highest <= 1 + over:
        return f"of levels from 0 to 1 {ends.format(*2 * ['(255 * image).clip(0, 255)'])}"
    if not -255 * over <= lowest or highest == np.inf or (over and highest < _LARGEST_NORMALISED):
        return None
    if array.dtype == np.uint16:  # a dark picture has low levels, too
        return f"of 8-bit levels image.astype('uint8'), {of_16_bits}" if highest <= 255 else of_16_bits
    if highest <= 255 + 255 * over:
        return ends.format(*2 * ["image.clip(0, 255)"])
    white = "(255 * (image / white).clip(0, 1)).round().astype('uint8') with the number that is to be white"
    return of_16_bits if highest <= 65535 else white


def check_levels(array: np.ndarray, name: str) -> None:
    """Raises `ClipbiasError` unless an array of pixels holds uint8 levels."""
    if array.dtype != np.uint8:
        how = level_advice(array) or "levels of the picture, not normalised numbers of clip.preprocess"
        raise ClipbiasError(f"{name} holds {array.dtype} numbers; give uint8 levels from 0 to 255: {how}.")


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts a Pillow image to mode "RGB"; Pillow drops transparency."""
    return image if image.mode == "RGB" else image.convert("RGB")


def is_plain(picture: Picture) -> bool:
    """Whether a picture is RGB or grey without transparency: all libraries convert it to the same RGB."""
    return isinstance(picture, np.ndarray) or (picture.mode in ("RGB", "L") and not picture.has_transparency_data)


def check_format(encoded: bytes, key: str) -> None:
    """Raises `ClipbiasError` unless the bytes begin as an image of `PICTURE_FORMATS`; pixels are not decoded."""
    try:
        Image.open(io.BytesIO(encoded), formats=PICTURE_FORMATS).close()
    except Exception as error:
        raise ClipbiasError(f"{key} is not an image ({', '.join(PICTURE_FORMATS)}); replace or convert it.") from error


def random_resized_crop_box(
    rng: np.random.Generator, height: int, width: int, smallest: float = SCALE[0]
) -> tuple[int, int, int, int]:
    """Draws a box (top, left, height, width) of at least the share `smallest` of the area, by torchvision's rule."""
    # Uniform in area and in the logarithm of the aspect ratio, so that width and height are treated alike.
    area = height * width
    for _ in range(ATTEMPTS):
        target_area = area * rng.uniform(smallest, SCALE[1])
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        box_width = round(math.sqrt(target_area * aspect))
        box_height = round(math.sqrt(target_area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            # Drawn only if the box fits, as torchvision does: the order of draws decides every later crop.
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, round(width / RATIO[0]))
    box_width = min(width, round(height * RATIO[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_crop(
    image: Picture,
    box: tuple[int, int, int, int],
    resizing: Resizing,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Cuts `box` (top, left, height, width) out of `image` and resizes it to `[R, R, 3]`."""
    top, left, height, width = box
    # Cut before resizing, as torchvision does: with resize(box=...) the filter would reach pixels outside the box.
    if isinstance(image, np.ndarray):
        cut = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    else:
        cut = _before_resizing(image.crop((left, top, left + width, top + height)), resizing)
    return np.asarray(as_rgb(cut.resize((resizing.side, resizing.side), resampling)))


def train_image(
    image: Picture,
    rng: np.random.Generator,
    resizing: Resizing,
    smallest: float = SCALE[0],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Computes a random resized crop, flipped with probability one half: `[h, w, 3]` to `[R, R, 3]`, uint8."""
    box = random_resized_crop_box(rng, *height_and_width(image), smallest)
    cropped = resized_crop(image, box, resizing, resampling)
    return cropped[:, ::-1] if rng.random() < 0.5 else cropped


def test_image(image: Picture, resizing: Resizing) -> np.ndarray:
    """Resizes a picture, `[h, w, 3]` or Pillow's, and cuts out its centre for evaluation: `[R, R, 3]`, uint8."""
    side = resizing.side
    picture = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    # The middle of a very long image first: a line of pixels, resized as a whole, would fill the memory.
    if max(picture.size) > (longest := MAX_ASPECT * min(picture.size)):
        left, top = (max(0, length - longest) // 2 for length in picture.size)
        picture = picture.crop((left, top, left + min(picture.width, longest), top + min(picture.height, longest)))
    picture = _before_resizing(picture, resizing)
    resized_side = side if resizing.size is None else resizing.size
    width = height = resized_side
    if not resizing.whole:
        width, height = (int(resized_side * length / min(picture.size)) for length in picture.size)
    # For palettes Pillow ignores the filter and takes the nearest pixel; so does open_clip.
    resized = as_rgb(picture.resize((width, height), Image.Resampling[resizing.resampling.upper()]))
    margins = (width - side, height - side)
    left, top = (excess // 2 if resizing.library == "transformers" else round(excess / 2) for excess in margins)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _before_resizing(picture: Image.Image, resizing: Resizing) -> Image.Image:
    if resizing.library == "transformers" and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return as_rgb(picture) if resizing.library == "transformers" else picture


def test_views(image: Picture, resizing: Resizing, crops: int, *, mixed: bool = False) -> np.ndarray:
    """Computes `test_image` and random crops of the image, flipped or not: `[h, w, 3]` to `[1 + crops, R, R, 3]`.

    Crops are bilinear, as in TPT (Shu et al. 2022), and uint8. With `mixed`, AugMix mixes each with distortions of it,
    and all views are float32 of the same range.
    """
    # Keyed on the pixels, so that an image has the same views in every split and order.
    rgb = image if isinstance(image, np.ndarray) else np.asarray(as_rgb(_before_resizing(image, resizing)))
    rng = _image_rng(rgb, b"views")
    cropped = [train_image(rgb, rng, resizing, resampling=Image.Resampling.BILINEAR) for _ in range(crops)]
    if mixed:
        rng = _image_rng(rgb, b"augmix")
        cropped = [augmix(crop, rng) for crop in cropped]
    return np.stack([test_image(image, resizing), *cropped])


def height_and_width(image: Picture) -> tuple[int, int]:
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _image_rng(image: np.ndarray, use: bytes) -> np.random.Generator:
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16, salt=use).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


# AugMix (Hendrycks et al. 2020, arXiv 1912.02781) with TPT's settings: a crop mixed with chains of mild distortions.

CHAINS = 3
MAX_CHAIN = 3  # operations in a chain
STRENGTHS = (0.1, 1.0)  # of an operation

Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _pixels(image: Image.Image, level: float, sign: int) -> int:
    """Returns the pixels of a translation: at most seven of 224."""
    return sign * int(level * image.size[0] / 30)


OPERATIONS: Mapping[str, Operation] = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, 4),
    "rotate": lambda image, level, sign: image.rotate(sign * int(3 * level), resample=Image.Resampling.BILINEAR),
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(25.6 * level)),
    "shear_x": lambda image, level, sign: _affine(image, (1, sign * 0.03 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level, sign: _affine(image, (1, 0, 0, sign * 0.03 * level, 1, 0)),
    "translate_x": lambda image, level, sign: _affine(image, (1, 0, _pixels(image, level, sign), 0, 1, 0)),
    "translate_y": lambda image, level, sign: _affine(image, (1, 0, 0, 0, 1, _pixels(image, level, sign))),
}


def augmix(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Computes `m x + (1 - m) Σ_i w_i x_i`: uint8 `[R, R, 3]` to float32 of the same range, not rounded.

    `x_i` is the crop `x` after one to three operations; `w` is drawn from Dirichlet(1, 1, 1), `m` from Beta(1, 1).
    """
    # TPT mixes normalised pixels. The weights sum to one, so that mixing levels and normalising later is the same.
    shares = rng.dirichlet(np.ones(CHAINS))
    weight = rng.beta(1, 1)  # of the crop
    operations = tuple(OPERATIONS.values())
    mixed = weight * crop.astype(np.float64)
    for share in shares:
        image = Image.fromarray(np.ascontiguousarray(crop))
        for _ in range(rng.integers(1, MAX_CHAIN + 1)):
            operation = operations[rng.integers(len(operations))]
            image = operation(image, rng.uniform(*STRENGTHS), 1 if rng.random() < 0.5 else -1)
        mixed += (1 - weight) * share * np.asarray(image)
    return mixed.astype(np.float32)
