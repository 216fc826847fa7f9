"""Exports in open_clip's format: read back by clipbias, and by open_clip where that is installed."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import clipbias
from clipbias.export import export
from tests.export import models

DATA = Path(__file__).parents[1] / "data_files"
BASES = (DATA / "tiny_quick_gelu", DATA / "tiny_gelu", "demo")


@pytest.mark.ci
@pytest.mark.parametrize("base", BASES, ids=lambda base: Path(base).name)
def test_it_is_the_folded_checkpoint(base, tmp_path):
    clip = clipbias.load(base)
    adapter = models.adapter(clip, "bias", tmp_path)
    assert export(adapter, clip, tmp_path / "out", form="open_clip") == "open_clip"
    export(adapter, clip, tmp_path / "plain")
    read, plain = clipbias.load(tmp_path / "out"), clipbias.load(tmp_path / "plain")
    jax.tree.map(np.testing.assert_array_equal, read.params, plain.params)
    assert (read.config, read.fingerprint) == (plain.config, plain.fingerprint)
    texts = ["a photo of a maine coon.", "naïve café?"]
    np.testing.assert_array_equal(read.tokenize(texts), plain.tokenize(texts))
    # The tensors have OpenAI's names and orientation: `x @ proj` and not transformers' `x @ weight.T`.
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    others = load_file(tmp_path / "plain" / "model.safetensors")
    np.testing.assert_array_equal(tensors["visual.proj"], others["visual_projection.weight"].T)
    bias = "encoder.layers.1.mlp.fc2.bias"
    np.testing.assert_array_equal(
        tensors["visual.transformer.resblocks.1.mlp.c_proj.bias"], others[f"vision_model.{bias}"]
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert not files & {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("base", BASES, ids=lambda base: Path(base).name)
def test_open_clip_computes_the_same(base, tmp_path, monkeypatch):
    """With the code of the card, and with texts of its own."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    clip = clipbias.load(base)
    adapter = models.adapter(clip, "bias", tmp_path)
    out = tmp_path / "out"
    export(adapter, clip, out, form="open_clip")
    (image,) = models.pictures(clip, 1)
    Image.fromarray(image).save(out / "image.png")
    monkeypatch.chdir(out)
    namespace: dict = {}
    exec(re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0], namespace)
    expected = models.logits(clip, adapter, image[None])
    models.assert_close(namespace["logits"].numpy(), expected)
    tokenizer = open_clip.get_tokenizer("local-dir:.")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in models.CLASS_NAMES]
    with torch.no_grad():
        features = namespace["model"].encode_text(tokenizer(texts), normalize=True)
    logits = namespace["model"].logit_scale.exp() * namespace["features"] @ features.T
    models.assert_close(logits.detach().numpy(), expected)
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == features.shape[1]
