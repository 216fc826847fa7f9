"""A user's own pictures: turned upright, in formats of phones, cut off, and in Python's hands."""

import io
import re

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from scipy.stats import binomtest

import clipbias
from clipbias import TunedModel, data
from clipbias.clip import Clip
from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images
from clipbias.data.user_images import UserImages, labelled_split, to_picture
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.tuning import Task
from experiments.inputs import find_images
from tests.data.pictures import picture, write

UPRIGHT = picture(3, 6, 9)
ORIENTATION = 0x0112
# How the stored pixels come of the upright ones, by the EXIF standard's numbers: where row 0 and column 0 are shown.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: UPRIGHT.swapaxes(0, 1)[::-1],
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],
}


def turned(orientation: int, exif: bytes | None = None) -> bytes:
    """A file whose EXIF orientation shows `UPRIGHT`."""
    if exif is None:
        tags = Image.Exif()
        tags[ORIENTATION] = orientation
        exif = tags.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", list(STORED))
def test_own_pictures_are_upright_and_those_of_the_benchmark_as_stored(orientation, tmp_path):
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    path.write_bytes(turned(orientation))
    (tmp_path / "list.csv").write_text("path,label\ncat/a.png,cat\n")
    folder = data.load("folder", data_dir=tmp_path).split("train")
    for split in (
        folder,
        folder.subset([0]),
        data.load("csv", data_dir=tmp_path / "list.csv").split("train"),
        labelled_split([path], ["cat"], ["cat"]),
        labelled_split([Image.open(path)], ["cat"], ["cat"]),
    ):
        np.testing.assert_array_equal(split.image(0), UPRIGHT)
        for cache_bytes in (0, 500, 5000):  # decoded each time, kept as a file, kept as pixels
            images = Images(split, ImageCache(cache_bytes, 1))
            for _ in range(2):
                np.testing.assert_array_equal(np.asarray(images.decoded(0)), UPRIGHT)
    for image in (path, Image.open(path)):
        np.testing.assert_array_equal(to_picture(image), UPRIGHT)
    np.testing.assert_array_equal(
        Split(("a",), np.zeros(1, int), lambda _: path.read_bytes()).image(0), STORED[orientation]
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\5\0"])
def test_damaged_exif_data_cost_no_picture(exif, tmp_path):
    (tmp_path / "a.png").write_bytes(turned(1, b"Exif\0\0" + exif))
    np.testing.assert_array_equal(to_picture(tmp_path / "a.png"), UPRIGHT)


def test_pictures_in_formats_that_are_not_read_are_counted_and_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transforms, "is_installed", lambda: False)
    for number in range(4):
        write(tmp_path / "cat" / f"{number}.jpg", number)
        write(tmp_path / "dog" / f"{number}.jpg", number)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.heif", "dog/d.dng", "dog/notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    assert sum(map(len, data.load("folder", data_dir=tmp_path).splits.values())) == 8
    examples = r"\(cat/a\.HEIC, cat/b\.heic, dog/c\.heif, …\)"
    counted = rf"4 pictures are left out.*{examples}: 2 \.heic, 1 \.heif, 1 \.dng; pip install"
    assert caplog.text.count("pictures are left out") == 1
    assert re.search(counted, caplog.text)
    caplog.clear()
    assert len(find_images(str(tmp_path))) == 8 and "4 pictures are left out" in caplog.text
    for path in (tmp_path / "cat").glob("*.jpg"):
        path.unlink()
    with pytest.raises(
        ClipbiasError, match=r"cat has no image that is read \(2 \.heic; pip install 'clipbias\[heif\]'"
    ):
        data.load("folder", data_dir=tmp_path)
    with pytest.raises(ClipbiasError, match=r"holds no image \(.*\); it holds 2 \.heic; pip install"):
        find_images(str(tmp_path / "cat"))


def test_heic_is_read(tmp_path):
    smooth = np.asarray(Image.fromarray(UPRIGHT).resize((90, 60), Image.Resampling.BICUBIC))
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "a.heic", quality=95)
    assert find_images(str(tmp_path)) == [tmp_path / "a.heic"]
    values = np.asarray(to_picture(tmp_path / "a.heic")).astype(int)
    assert values.shape == smooth.shape and np.abs(values - smooth).mean() < 6


@pytest.fixture(scope="module")
def zero_shot(clip: Clip) -> TunedModel:
    return TunedModel(Task(clip, "zero_shot", ("cat", "dog")), {})


@pytest.mark.ci
def test_a_picture_that_is_cut_off_has_a_line_of_its_own(zero_shot, tmp_path):
    files = [write(tmp_path / f"{number}.jpg", number) for number in range(5)]
    files[1].write_bytes(files[1].read_bytes()[:-200])
    lazy = Image.open(io.BytesIO(files[1].read_bytes()))  # Pillow finds out when it needs the pixels
    with pytest.raises(
        UnreadableImage, match=r"1\.jpg cannot be decoded .*on_image_error=skip, in Python on_image_error="
    ):
        zero_shot.predict(files)
    result = zero_shot.predict([*files, lazy], batch_size=2, on_image_error="skip")
    whole = [*files[:1], *files[2:]]
    expected = zero_shot.predict(whole)
    np.testing.assert_allclose(result.probabilities[[0, 2, 3, 4]], expected.probabilities, rtol=1e-5)
    assert list(result.errors) == [1, 5] and np.isnan(result.probabilities[[1, 5]]).all()
    assert result.labels.tolist() == [expected.labels[0], -1, *expected.labels[1:], -1] and result.classes[1] is None
    lines = repr(result).split("\n")
    assert (
        len(lines) == 7 and "1.jpg cannot be decoded" in lines[1] and lines[5].startswith("image 5 cannot be decoded")
    )
    labels = ["cat", "dog", "dog", "cat", "dog"]
    accuracy = zero_shot.evaluate(files, labels, on_image_error="skip")
    assert accuracy.predicted[1] == -1 and accuracy.images == 4 == accuracy.confusion.sum()
    right = [name == label for name, label in zip(expected.classes, [labels[0], *labels[2:]], strict=True)]
    assert accuracy.accuracy == 25 * sum(right) and "; 1 could not be read" in repr(accuracy).split("\n")[0]
    low, high = binomtest(sum(right), 4).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(accuracy.interval, (100 * low, 100 * high), atol=1e-9)


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:there are no validation images")
def test_training_leaves_out_what_cannot_be_read(clip, tmp_path):
    files = [write(tmp_path / f"{number}.jpg", number) for number in range(4)]
    files[1].write_bytes(b"")
    labels = ["cat", "cat", "dog", "dog"]
    options = {"progress": False}
    with pytest.raises(UnreadableImage, match=r"1\.jpg is empty"):
        clipbias.fit(clip, "gda", files, labels, **options)
    model = clipbias.fit(clip, "gda", files, labels, on_image_error="skip", **options)
    assert np.isfinite(model.predict(files[2:]).probabilities).all()


def test_images_of_a_batch_are_counted_once():
    images = UserImages([b"", "nowhere.png"])
    with pytest.raises(ClipbiasError, match="image 0 is b''; give a path"):
        images.decoded(0)
    with pytest.raises(UnreadableImage):
        images.decoded(1)
    assert images.errors == {1: "cannot read the image nowhere.png: No such file or directory"}
