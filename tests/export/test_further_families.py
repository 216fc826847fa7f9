"""Exports of Perception Encoder, BiomedCLIP and Chinese-CLIP: what is loaded computes what was tuned."""

import contextlib
import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import clipbias
from clipbias.clip.tokenizer import read_tokenizer
from clipbias.export import export
from clipbias.export.card import model_card
from clipbias.tuning.adapter import Adapter, read_adapter, save_adapter
from tests import families
from tests.export import models
from tests.families import CLASSES, Reference


@pytest.fixture
def model(family: str, tmp_path: Path) -> Reference:
    return families.reference(family, 1, tmp_path)


def tuned(model: Reference, method: str, folder: Path) -> Adapter:
    task = families.task_of(model, method)
    save_adapter(folder / "tuned.safetensors", task, jax.device_get(families.trained(model, method)))
    return read_adapter(folder / "tuned.safetensors")


@pytest.mark.ci
@pytest.mark.parametrize("family", ["pe", "biomed_clip", "chinese_clip"])
def test_a_bias_is_exported_as_a_checkpoint(model, tmp_path):
    adapter = tuned(model, "bias", tmp_path)
    with families.sizes(model.geometry):
        assert export(adapter, model.clip, tmp_path / "out") == "checkpoint"
        plain = clipbias.load(tmp_path / "out")
    task = clipbias.Task(plain, "zero_shot", CLASSES)
    logits = jax.jit(task.logits)(plain.params, task.init(), model.images)
    bound, learnables = adapter.bind(model.clip)
    expected = jax.jit(bound.logits)(model.clip.params, learnables, model.images)
    assert families.difference(logits, np.asarray(expected)) < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    library = "transformers" if model.family == "chinese_clip" else "open_clip"
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == library


@pytest.mark.parametrize("family", ["chinese_clip"])
def test_transformers_computes_the_same(model, tmp_path, monkeypatch):
    """With the code of the card, whose pixels are the model's, too."""
    pytest.importorskip("torch")
    adapter = tuned(model, "bias", tmp_path)
    out = tmp_path / "out"
    export(adapter, model.clip, out)
    (image,) = models.pictures(model.clip, 1)
    Image.fromarray(image).save(out / "image.png")
    monkeypatch.chdir(out)
    namespace: dict = {}
    with contextlib.redirect_stdout(None):
        exec(re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0], namespace)
    models.assert_close(namespace["logits"].numpy(), models.logits(model.clip, adapter, image[None]))


@pytest.mark.parametrize("family", ["siglip_2"])
def test_a_siglip_of_open_clip_has_its_ids_in_transformers(model, tmp_path):
    """open_clip takes punctuation away, which the files of its tokenizer do not say."""
    import transformers

    text_tokenizer = read_tokenizer(Path(model.clip.files[0]).parent, "siglip", "canonicalize")
    clip = dataclasses.replace(model.clip, tokenizer=text_tokenizer)
    clip.save(tmp_path / "out")
    length = clip.config.text.context_length
    texts = ["a photo of a Cat, Dog.", "two_words  (and) \t more!", "Ünï", ""]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = auto(texts, padding="max_length", max_length=length)["input_ids"]
    np.testing.assert_array_equal(ids, clip.tokenize(texts))
    task = clipbias.Task(clip, "bias", CLASSES)
    adapter = Adapter(task.init(), "bias", {}, CLASSES, "a {}.", clip.name, clip.fingerprint)
    card = model_card(adapter, task, "checkpoint")
    assert f'`AutoTokenizer` reads this folder too, with `padding="max_length", max_length={length}`' in card
    assert "of texts with HTML entities, or with letters that were decoded wrongly, it makes other tokens" in card
    assert "CLIPProcessor" not in card
