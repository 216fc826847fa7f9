"""Which images `clipbias predict` finds where names have commas."""

from pathlib import Path

import pytest
from PIL import Image

from clipbias.errors import ClipbiasError
from experiments.predict import find_images


def test_a_name_may_have_a_comma(tmp_path: Path) -> None:
    (tmp_path / "a, b").mkdir()
    files = [tmp_path / "a, b" / "it's, c.png", tmp_path / "d.png"]
    for file in files:
        Image.new("RGB", (2, 2)).save(file)
    assert find_images(str(files[0])) == find_images(str(tmp_path / "a, b")) == files[:1]
    assert find_images(f"{files[1]}, {files[1]}") == [files[1]] * 2
    with pytest.raises(ClipbiasError, match=r"no image or folder .*a; commas separate names, so give the folder"):
        find_images(f"{files[0]},{files[1]}")
    with pytest.raises(ClipbiasError, match=r"no image or folder .*none\.png\.$"):
        find_images(str(tmp_path / "none.png"))
