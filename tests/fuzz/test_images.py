"""Image files of every kind and in every state."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from clipbias.data import transforms
from clipbias.data.pipeline import augmentation_rng
from clipbias.data.transforms import Resizing
from tests import bad_files
from tests.fuzz.answers import answered, corrupted

SIZE = 16


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def whole_images() -> dict[str, bytes]:
    """Small whole files of every format and mode that people have."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    made = {form: encode(rgb, form) for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")}
    made |= {f"PNG {mode}": encode(rgb.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")}
    made |= {f"JPEG {mode}": encode(rgb.convert(mode), "JPEG") for mode in ("L", "CMYK")}
    made |= {f"TIFF {mode}": encode(rgb.convert(mode), "TIFF") for mode in ("1", "CMYK", "I", "YCbCr", "LAB")}
    deep = Image.fromarray(np.arange(12 * 9, dtype=np.uint16).reshape(9, 12) * 600)
    made |= {"PNG 16 bit": encode(deep, "PNG"), "TIFF 16 bit": encode(deep, "TIFF")}
    frames = [Image.fromarray(np.roll(pixels, i, 0)) for i in range(3)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        made[f"{form} animated"] = encode(rgb, form, save_all=True, append_images=frames)
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turned
        made[f"JPEG turned {turned}"] = encode(rgb, "JPEG", exif=exif.tobytes())
    for size in ((1, 1), (1, 9), (2000, 1), (1, 2000)):
        made[f"PNG {size}"] = encode(rgb.resize(size), "PNG")
    made["JPEG progressive"] = encode(rgb, "JPEG", progressive=True)
    for how in ("tiff_lzw", "tiff_deflate", "packbits", "group4"):
        made[f"TIFF {how}"] = encode(rgb.convert("1") if how == "group4" else rgb, "TIFF", compression=how)
    return made


WHOLE = whole_images()


def use(encoded: bytes) -> None:
    """An image as training and as evaluation see it."""
    image = np.asarray(transforms.as_rgb(transforms.decode_picture(encoded, "x.jpg")))
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    assert transforms.test_image(image, Resizing(SIZE)).shape == (SIZE, SIZE, 3)
    assert transforms.train_image(image, augmentation_rng(1, 2, 3), Resizing(SIZE)).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("kind", list(WHOLE))
def test_whole_files_are_read(kind):
    assert answered(lambda: use(WHOLE[kind])) is None


@given(st.sampled_from(sorted(WHOLE)).flatmap(lambda kind: corrupted(WHOLE[kind])))
def test_damaged_files_are_read_or_refused(encoded):
    message = answered(lambda: use(encoded))
    assert message is None or message.startswith("the image x.jpg ")


@pytest.mark.parametrize("kind", bad_files.PICTURES)
def test_what_is_no_image_is_refused_by_name(kind):
    message = answered(lambda: use(bad_files.PICTURES[kind]))
    assert message and message.startswith("the image x.jpg ") and "0x" not in message


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from((1, 1, 1, 300)), st.integers(1, 40))
@example(10, 2000, 10, 16)
@example(1, 60, 300, 224)
def test_any_shape_is_cut_to_size(height, width, stretch, size):
    for image in (np.zeros((height, width * stretch, 3), np.uint8), np.zeros((width * stretch, height, 3), np.uint8)):
        assert transforms.test_image(image, Resizing(size)).shape == (size, size, 3)
        assert transforms.train_image(image, augmentation_rng(0, 0, 0), Resizing(size)).shape == (size, size, 3)
