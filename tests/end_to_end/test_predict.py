"""Which images `clipbias predict` finds where names have commas, and zero-shot beside an adapter."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
import experiments.predict
from clipbias.errors import ClipbiasError
from experiments.predict import find_images
from tests.end_to_end.binaries import answer_here


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


def test_no_image_is_left_out_for_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played, since nothing is closed to the user that tests may run as."""
    scan = os.scandir

    def closed(path: Any) -> Any:
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    (tmp_path / "dog").mkdir()
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ClipbiasError, match=r"cannot read the folder .*: Permission denied"):
        find_images(str(tmp_path))


def test_zero_shot_sees_the_whole_image_and_the_adapters_template(model: Path, tmp_path: Path) -> None:
    """Also beside a method that learns of crops of each image."""
    clip, names, template = clipbias.load(model), ("cat", "dog", "bird"), "two {} beside a house."
    task = clipbias.Task(clip, "tpt_coop", names, template=template)
    clipbias.save_adapter(tmp_path / "a.safetensors", task, task.init(seed=0))
    files = [tmp_path / "one.png", tmp_path / "other.png"]
    for file in files:
        picture = np.random.default_rng(len(file.stem)).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(picture).save(file)
    settings = {"images": ",".join(map(str, files)), "adapter": str(tmp_path / "a.safetensors"), "top": 3}
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    zero_shot = clipbias.Task(clip, "zero_shot", names, template=template)
    expected = jax.nn.softmax(jax.jit(zero_shot.logits)(clip.params, {}, clip.preprocess(files)))
    for entry, own in zip(found, np.asarray(expected), strict=True):
        shares = dict(zip(entry["zero_shot"]["classes"], entry["zero_shot"]["probabilities"], strict=True))
        assert shares == pytest.approx(dict(zip(names, own.tolist(), strict=True)), rel=1e-4)
        assert entry["probabilities"] != pytest.approx(entry["zero_shot"]["probabilities"], rel=1e-3)
    assert answer_here(experiments.predict, settings | {"zero_shot": False}, tmp_path / "alone")[0] == 0
    (first, _) = json.loads((tmp_path / "alone" / "predictions.json").read_text())
    assert first.keys() == {"image", "classes", "probabilities"}
