"""The folded checkpoint: the same network, and nothing but MLP output biases changed."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip.checkpoint import INDEX, WEIGHTS
from clipbias.export import export
from tests import helpers
from tests.export import models


def is_folded(name: str) -> bool:
    return name.endswith("mlp.fc2.bias")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "template", "scale"),
    [
        ("bias", "a photo of a {}.", None),
        ("bitfit", "a photo of a {}.", None),
        pytest.param("layer_norm", "a photo of a {}.", None, marks=pytest.mark.long),
        pytest.param("clip_lora", "a photo of a {}.", 100, marks=pytest.mark.long),
        ("prolip", "a {} of a pet.", 100),
    ],
)
def test_tuned_weights_fold_with_the_scale_of_their_cosines(method, template, scale, clip, tmp_path):
    adapter = models.adapter(clip, method, tmp_path)
    assert export(adapter, clip, tmp_path / "out") == "checkpoint"
    images = models.pictures(clip)
    expected = models.logits(clip, adapter, images)
    models.assert_close(models.zero_shot_logits(tmp_path / "out", images, template), expected)
    plain = models.logits(clip, models.adapter(clip, "zero_shot", tmp_path), images)
    assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()
    scale_of_clip = float(np.exp(clip.params["logit_scale"]))
    assert abs(scale_of_clip - 100) > 10  # so that it matters whose scale is written
    assert float(np.exp(clipbias.load(tmp_path / "out").params["logit_scale"])) == pytest.approx(scale or scale_of_clip)
    with safe_open(tmp_path / "out" / "classifier.safetensors", "np") as head:
        assert float(np.exp(head.get_tensor("logit_scale"))) == pytest.approx(scale or scale_of_clip)
        assert json.loads(head.metadata()["templates"]) == [template]


@pytest.mark.parametrize(
    "dtype",
    helpers.short([np.float32, np.float16, ml_dtypes.bfloat16], np.float16),
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_no_bias_is_rounded_and_no_other_weight_touched(model, tmp_path, dtype):
    base_folder = Path(shutil.copytree(model, tmp_path / "base"))
    base = {name: x.astype(dtype) for name, x in load_file(model / WEIGHTS).items()}
    save_file(base, base_folder / WEIGHTS)
    clip = clipbias.load(base_folder)
    adapter = models.adapter(clip, "bias", tmp_path, size=1e-3)  # too small to survive in a half's digits
    export(adapter, clip, tmp_path / "out")
    folded = load_file(tmp_path / "out" / WEIGHTS)
    assert folded.keys() == base.keys()
    for name in filter(lambda name: not is_folded(name), base):
        assert folded[name].dtype == base[name].dtype
        assert folded[name].tobytes() == base[name].tobytes(), name
    for tower in ("vision", "text"):
        for l, bias in enumerate(adapter.learnables[f"{tower}_bias"]):
            name = f"{tower}_model.encoder.layers.{l}.mlp.fc2.bias"
            assert folded[name].dtype == np.float32
            np.testing.assert_array_equal(folded[name], base[name].astype(np.float32) + bias)
    # A program that loads in the configured type gets those float32 biases as they are.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    images = models.pictures(clip)
    models.assert_close(models.zero_shot_logits(tmp_path / "out", images), models.logits(clip, adapter, images))


def test_a_sharded_base_makes_the_same_checkpoint(model, clip, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "sharded"))
    tensors = load_file(folder / WEIGHTS)
    owner = {name: f"{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(owner.values()):
        save_file({name: tensors[name] for name in owner if owner[name] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": owner}))
    adapter = models.adapter(clip, "bias", tmp_path)
    export(adapter, clip, tmp_path / "whole")
    export(adapter, clipbias.load(folder), tmp_path / "from_shards")
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "from_shards"))
    assert first == second
