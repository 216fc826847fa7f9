"""Class features in a file: with the base model's image features they give the adapter's logits."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

import clipbias
from clipbias.clip import encode_image
from clipbias.export import export
from tests.export import models

encode = jax.jit(encode_image, static_argnums=1)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "options", "templates"),
    [
        ("zero_shot", {"templates": ("a {}.", "the {}.")}, ["a {}.", "the {}."]),
        pytest.param("coop", {}, ["a photo of a {}."], marks=pytest.mark.long),
        ("coop", {"class_specific": True, "tokens": 2, "position": "front"}, ["X X {}."]),
        pytest.param("taskres", {}, ["a {} of a pet."], marks=pytest.mark.long),
        ("own.py", {}, ["a photo of a {}."]),
    ],
)
def test_the_head_reproduces_the_logits(clip, tmp_path, method, options, templates):
    if method == "own.py":
        method = str(tmp_path / method)
        Path(method).write_text(models.SHIFT)
    adapter = models.adapter(clip, method, tmp_path, **options)
    assert export(adapter, clip, tmp_path / "out", own_methods=(method,)) == "head"
    with safe_open(tmp_path / "out" / "classifier.safetensors", "numpy") as file:
        features = file.get_tensor("text_features")
        scale = file.get_tensor("logit_scale")
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == list(models.CLASS_NAMES)
    assert json.loads(metadata["templates"]) == templates
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-6)
    images = models.pictures(clip)
    features_of_images = np.asarray(encode(clip.params, clip.config, clip.preprocessing.normalize(images))[0])
    features_of_images = features_of_images / np.linalg.norm(features_of_images, axis=-1, keepdims=True)
    models.assert_close(np.exp(scale) * features_of_images @ features.T, models.logits(clip, adapter, images))


def test_the_head_beside_a_checkpoint_is_that_checkpoints_own(clip, tmp_path):
    export(models.adapter(clip, "bias", tmp_path), clip, tmp_path / "out")
    folded = clipbias.load(tmp_path / "out")
    task = clipbias.Task(folded, "zero_shot", models.CLASS_NAMES, template="a photo of a {}.")
    with safe_open(tmp_path / "out" / "classifier.safetensors", "numpy") as file:
        models.assert_close(jax.jit(task.class_features)(folded.params, {}), file.get_tensor("text_features"))
