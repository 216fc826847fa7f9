"""Which form an adapter gets, what stands in every folder, and checkpoints and heads with the adapter's logits."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip.checkpoint import WEIGHTS
from clipbias.export import export, natural_form
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter
from clipbias.tuning.tuned import Tuned
from tests import helpers
from tests.export import models


@pytest.mark.parametrize(
    ("method", "options", "form"),
    [
        ("bias", {}, "checkpoint"),
        ("bias", {"vision_tower": False}, "checkpoint"),
        ("bias_by_kind", {}, "program"),
        ("bias_by_kind", {"vision_tower": False}, "head"),
        ("coop", {}, "head"),
        ("ivlp", {"vision_tokens": 0}, "head"),
        ("vpt", {}, "program"),
        ("tests.own_methods:Projection", {}, "checkpoint"),
        ("tests.own_methods:Everything", {}, "program"),
        ("tests.own_methods:Head", {}, "program"),
        ("tests.own_methods:Cache", {}, "program"),
    ],
)
def test_the_natural_form(clip, method, options, form):
    task = Task(clip, method, models.CLASS_NAMES, **options)
    assert natural_form(task, task.shapes) == form


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "template", "scale"),
    [
        ("bias", "a photo of a {}.", None),
        ("bitfit", "a photo of a {}.", None),
        ("prolip", "a {} of a pet.", 100),
    ],
)
def test_tuned_weights_fold_with_the_scale_of_their_cosines(method, template, scale, clip, tmp_path):
    tuned = models.tuned(clip, method, tmp_path)
    assert export(tuned, tmp_path / "out") == "checkpoint"
    images = models.pictures(clip)
    expected = models.logits(tuned, images)
    models.assert_close(models.zero_shot_logits(tmp_path / "out", images, template), expected)
    plain = models.logits(models.tuned(clip, "zero_shot", tmp_path), images)
    assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()
    scale_of_clip = float(np.exp(clip.params["logit_scale"]))
    assert abs(scale_of_clip - 100) > 10  # so that it matters whose scale is written
    assert float(np.exp(clipbias.load(tmp_path / "out").params["logit_scale"])) == pytest.approx(scale or scale_of_clip)
    # The head beside the checkpoint says what it is of.
    with safe_open(tmp_path / "out" / "classifier.safetensors", "np") as file:
        class_names, templates = (json.loads(file.metadata()[name]) for name in ("class_names", "templates"))
        assert np.exp(file.get_tensor("logit_scale")) == pytest.approx(scale or scale_of_clip)
    assert (class_names, templates) == (list(models.CLASS_NAMES), [template])


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
    tuned = models.tuned(clip, "bias", tmp_path, size=1e-3)  # too small to survive in a half's digits
    export(tuned, tmp_path / "out")
    folded = load_file(tmp_path / "out" / WEIGHTS)
    assert folded.keys() == base.keys()
    for name in (name for name in base if not name.endswith("mlp.fc2.bias")):
        assert folded[name].dtype == base[name].dtype
        assert folded[name].tobytes() == base[name].tobytes(), name
    for tower in ("vision", "text"):
        for l, bias in enumerate(tuned.learnables[f"{tower}_bias"]):
            name = f"{tower}_model.encoder.layers.{l}.mlp.fc2.bias"
            assert folded[name].dtype == np.float32
            np.testing.assert_array_equal(folded[name], base[name].astype(np.float32) + bias)
    # A program that loads in the configured type gets those float32 biases as they are.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    images = models.pictures(clip)
    models.assert_close(models.zero_shot_logits(tmp_path / "out", images), models.logits(tuned, images))


def test_a_sharded_base_makes_the_same_checkpoint(model, clip, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "sharded"))
    tensors = load_file(folder / WEIGHTS)
    owner = {name: f"{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(owner.values()):
        save_file({name: tensors[name] for name in owner if owner[name] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": owner}))
    tuned = models.tuned(clip, "bias", tmp_path)
    export(tuned, tmp_path / "whole")
    export(read_adapter(tmp_path / "tuned.safetensors").bind(clipbias.load(folder)), tmp_path / "from_shards")
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "from_shards"))
    assert first == second


def test_a_head_of_siglip_has_its_bias(tmp_path):
    clip = clipbias.load("demo-siglip")
    task = clipbias.Task(clip, "zero_shot", ("cat", "dog"))
    assert export(Tuned(task), tmp_path / "out") == "head"
    head = load_file(tmp_path / "out" / "classifier.safetensors")
    size = clip.config.vision.image_size
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    logits = np.exp(head["logit_scale"]) * clip.encode_images(picture, normalize=True) @ head["text_features"].T
    images = np.asarray(clip.preprocessing.normalize(picture))
    expected = jax.jit(task.logits)(clip.params, {}, images)
    np.testing.assert_allclose(logits + head["logit_bias"], expected, rtol=1e-4, atol=1e-4)
