"""Transforms against torchvision, odd images, and AugMix against NumPy.

Torchvision's outputs were stored by `tools/make_transform_reference.py` of commit 879c20d8.
"""

import io
import re
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from clipbias.data import transforms
from clipbias.data.transforms import OPERATIONS, Resizing, augmix
from clipbias.data.user_images import UserImages
from clipbias.errors import ClipbiasError, UnreadableImage
from tests.data.pictures import picture
from tests.reference import augmix as plain

REFERENCE = Path(__file__).parents[1] / "data_files" / "transform_reference.npz"
# Since Pillow 13 the side that shrinks more is resized first; before, the width always was, and what lies between the
# two was rounded elsewhere. Pictures that shrink equally both ways, and those that do not get lower, are the same.
WIDTH_FIRST = int(PIL.__version__.partition(".")[0]) < 13


class Replay:
    """A generator that gives out recorded draws in order, whatever it is asked for."""

    def __init__(self, draws):
        self.draws = list(draws)

    def uniform(self, low, high):
        return self.draws.pop(0)

    def integers(self, low, high):
        value = self.draws.pop(0)
        assert low <= value < high
        return int(value)


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE, allow_pickle=False) as stored:
        return dict(stored)


def test_boxes_follow_torchvision_rule(reference):
    fallbacks = 0
    for number, (height, width) in enumerate(reference["sizes"]):
        for box, draws in zip(reference[f"boxes_{number}"], reference[f"draws_{number}"], strict=True):
            used = draws[~np.isnan(draws)]
            replay = Replay(used)
            assert transforms.random_resized_crop_box(replay, int(height), int(width)) == tuple(box)
            assert not replay.draws
            fallbacks += len(used) == 2 * transforms.ATTEMPTS
    assert fallbacks > 0  # the narrow pictures reach the central fallback


def test_pixels_equal_torchvision(reference):
    size = int(reference["image_size"])
    for number in range(len(reference["sizes"])):
        pixels = reference[f"pixels_{number}"]
        np.testing.assert_array_equal(transforms.test_image(pixels, Resizing(size)), reference[f"test_{number}"])
        for box, crop in zip(reference[f"boxes_{number}"], reference[f"crops_{number}"], strict=True):
            if WIDTH_FIRST and box[2] > size:
                continue
            np.testing.assert_array_equal(transforms.resized_crop(pixels, tuple(box), Resizing(size)), crop)


def test_half_of_all_crops_are_mirrored():
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], (32, 32, 3))
    crops = [transforms.train_image(ramp, np.random.default_rng(seed), Resizing(8)) for seed in range(200)]
    assert 70 < sum(int(crop[:, -1].mean()) > int(crop[:, 0].mean()) for crop in crops) < 130


def test_the_middle_of_a_line_of_pixels_is_evaluated():
    line = np.random.default_rng(0).integers(0, 256, (2, 200, 3), dtype=np.uint8)
    whole, middle = (transforms.test_image(pixels, Resizing(8, whole=True)) for pixels in (line, line[:, 68:132]))
    np.testing.assert_array_equal(whole, middle)


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def odd_images() -> dict[str, bytes]:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    alpha = rgb.copy()
    alpha.putalpha(7)
    return {
        "exif": save(rgb, "JPEG", exif=rotated),
        "grey": save(rgb.convert("L"), "PNG"),
        "palette": save(rgb.convert("P"), "PNG"),
        "cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "alpha": save(alpha, "PNG"),
        "animated": save(rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)]),
        "bilevel": save(rgb.convert("1"), "PNG"),
    }


@pytest.mark.parametrize("kind", list(odd_images()))
def test_odd_modes_do_what_pillow_does(kind, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(odd_images()[kind])
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = np.asarray(transforms.as_rgb(transforms.decode_picture(path.read_bytes(), kind)))
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.shape == (6, 9, 3)  # EXIF orientation is not applied: the picture stays as stored


def test_every_view_shows_transparency_as_the_library_does():
    levels = np.random.default_rng(1).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    image = Image.fromarray(levels)
    resizing = Resizing(8, library="transformers")
    white = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]
    views = transforms.test_views(image, resizing, 2)
    np.testing.assert_array_equal(views, transforms.test_views(white, resizing, 2))
    np.testing.assert_array_equal(
        transforms.test_views(image, Resizing(8), 2)[1:], transforms.test_views(levels[..., :3], Resizing(8), 2)[1:]
    )


def test_grey_levels_of_sixteen_bits_are_divided_by_257_and_rounded():
    levels = np.arange(0, 65536, 51, np.uint16)[None]
    for kind, stored in (("PNG", levels), ("TIFF", levels), ("PPM", levels.astype(np.int32))):
        decoded = transforms.decode_picture(save(Image.fromarray(stored), kind), "x")
        np.testing.assert_array_equal(decoded, np.rint(levels / 257), err_msg=kind)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_levels_of_32_bits_are_read_where_they_say_what_they_are(dtype):
    for values in ([0, 7, 255], [0, 0, 0], [3, 0, 2]):
        image = transforms.decode_picture(save(Image.fromarray(np.array([values], dtype)), "TIFF"), "x.tif")
        assert image.mode == "L" and np.asarray(image).tolist() == [values]
    for values, advice in (
        ([0, 1, 0], r"of levels from 0 to 1 \(255 \* image\)"),
        ([0, 256, 65535], r"\(image / 257\)\.round"),
        ([0, 0, 70000], r"255 \* \(image / white\)"),
    ):
        with pytest.raises(UnreadableImage, match=rf"the image x\.tif holds {np.dtype(dtype)} numbers; .*{advice}"):
            transforms.decode_picture(save(Image.fromarray(np.array([values], dtype)), "TIFF"), "x.tif")
    for value in (0.5, np.nan, -1.0, 254.5):
        with pytest.raises(UnreadableImage, match="float32 numbers"):
            transforms.decode_picture(save(Image.fromarray(np.array([[value, 0]], np.float32)), "TIFF"), "x.tif")


def test_advice_for_levels_that_are_not_uint8_gives_the_picture():
    """Followed to the letter: the arrays are one picture in other units."""
    levels = np.random.default_rng(3).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    levels[0, 0] = (0, 255, 128)
    for image in (
        levels.astype(np.float32),
        levels + np.linspace(-0.4, 0.4, 60).reshape(5, 4, 3) + 9 * (levels == 255) - 9 * (levels == 0),
        levels / 255,
        (levels / 255 - 0.001 * (levels == 0) + 0.09 * (levels == 255)).astype(np.float32),
        levels / np.float16(255),
        257 * levels.astype(np.uint16),
        257 * levels.astype(np.int64),
        257.0 * levels,
        levels.astype(np.int32),
        levels.astype(np.uint16),
        levels > 127,
    ):
        with pytest.raises(ClipbiasError, match="image 0 holds") as raised:
            UserImages(image)
        advice = re.split(", or of a tensor|, of 16-bit", str(raised.value).partition("to 255: ")[2])[0]
        made = eval(re.sub("^of levels from 0 to 1 |^of (8|16)-bit levels ", "", advice), {"image": image})
        expected = 255 * (levels > 127) if image.dtype == bool else levels
        assert made.dtype == np.uint8
        np.testing.assert_array_equal(made, expected, err_msg=str(raised.value))


# AugMix: each operation to the bit, and what is drawn and mixed


SIZE = 64


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    """A picture whose levels are neither all there nor spread over the whole range."""
    return (transforms.test_image(picture(3), transforms.Resizing(SIZE)) // 3 * 2 + 85).astype(np.uint8)


@pytest.mark.parametrize("name", plain.OPERATIONS)
def test_operations_equal_numpy(name, crop):
    changed = 0
    for level in (0.1, 0.4, 0.7, 0.999):
        for sign in (-1, 1):
            output = np.asarray(OPERATIONS[name](Image.fromarray(crop), level, sign))
            np.testing.assert_array_equal(output, plain.OPERATIONS[name](crop, level, sign))
            changed += not np.array_equal(output, crop)
    assert changed >= 2 and OPERATIONS.keys() == plain.OPERATIONS.keys()


def test_flat_images_stay_as_they_are():
    flat = np.full((8, 8, 3), 90, np.uint8)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(OPERATIONS[name](Image.fromarray(flat), 0.5, 1), flat)
        np.testing.assert_array_equal(plain.OPERATIONS[name](flat, 0.5, 1), flat)


def test_the_mixture_equals_numpy(crop):
    for seed in range(20):
        mixed = augmix(crop, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet([1, 1, 1])
        weight = rng.beta(1, 1)
        chains = []
        for _ in range(3):
            chain = crop
            for _ in range(rng.integers(1, 4)):
                operation = [*plain.OPERATIONS.values()][rng.integers(9)]
                chain = operation(chain, rng.uniform(0.1, 1.0), 1 if rng.random() < 0.5 else -1)
            chains.append(chain)
        assert mixed.dtype == np.float32 and mixed.shape == crop.shape
        np.testing.assert_allclose(mixed, plain.mixture(crop, chains, shares, weight), rtol=1e-6)
