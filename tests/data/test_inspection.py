"""Looking at images without decoding them: what is found is what decoding finds."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipbias.data import inspection, transforms
from clipbias.data.files_on_disk import split_of_files
from clipbias.errors import ClipbiasError

FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def encoded(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def decodes(content: bytes) -> bool:
    try:
        transforms.decode(content, "x")
    except ClipbiasError:
        return False
    return True


@pytest.mark.parametrize("form", FORMS)
def test_whole_and_cut_images(form: str) -> None:
    whole = encoded(form)

    def passes(content: bytes) -> bool:
        try:
            inspection.check_whole(content, "a.img")
        except ClipbiasError:
            return False
        return True

    for share in (0.0, 0.05, 0.5, 0.9, 0.999, 1.0):
        content = whole[: round(share * len(whole))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert passes(content) == decodes(content), share
    assert passes(whole + b"\0" * 500)  # what cameras leave behind the end


def test_a_whole_image_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("decoded")

    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        (tmp_path / form).write_bytes(encoded(form))
    split = split_of_files(tmp_path, ("JPEG", "PNG", "WEBP", "GIF"), [0] * 4)
    monkeypatch.setattr(transforms, "decode", refused)
    assert inspection.unreadable([split]) == {}
    with pytest.raises(AssertionError, match="decoded"):
        inspection.unreadable([split], how="all")


def test_what_is_no_image_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder.png").mkdir()
    damaged = bytearray(encoded("PNG"))
    damaged[200:260] = b"\0" * 60  # inside the pixels: only decoding finds it
    (tmp_path / "inside.png").write_bytes(damaged)
    names = ("good.png", "empty.png", "text.png", "pipe.png", "circle.png", "folder.png", "none.png", "inside.png")
    split = split_of_files(tmp_path, names, [0] * len(names))
    done: list[int] = []
    found = inspection.unreadable([split, split.subset([1, 2])], advance=done.append)
    assert sum(done) == len(names)  # each once
    assert found == {
        "empty.png": "it is empty",
        "text.png": "cannot identify image file",
        "pipe.png": "it is not a file",
        "circle.png": "Too many levels of symbolic links",
        "folder.png": "it is not a file",
        "none.png": "No such file or directory",
    }
    assert inspection.unreadable([split], how="all").keys() - found.keys() == {"inside.png"}
    assert inspection.unreadable([split], how="none") == {}
