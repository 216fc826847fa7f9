"""`transformers` and open_clip, where installed, load what is exported of every family, and compute the same."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image
from safetensors.numpy import load_file

import clipbias
from clipbias.clip.tokenizer import read_tokenizer
from clipbias.export import export
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned
from tests import families
from tests.export import models
from tests.families import CLASSES, Reference

DATA = Path(__file__).parents[1] / "data_files"


@pytest.mark.parametrize(
    "base", [DATA / "tiny_quick_gelu", DATA / "tiny_gelu", "demo", "demo-siglip"], ids=lambda base: Path(base).name
)
def test_the_folded_checkpoint(base, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    clip = clipbias.load(base)
    tuned = models.tuned(clip, "bias", tmp_path)
    export(tuned, tmp_path / "out")
    images = models.pictures(clip, 3)
    expected = models.logits(tuned, images)
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in models.CLASS_NAMES]
    # SigLIP reads its whole context.
    inputs = tokenizer(texts, return_tensors="pt", padding="max_length" if base == "demo-siglip" else True)
    inputs |= processor([Image.fromarray(x) for x in images], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.numpy()
    models.assert_close(logits, expected)


@pytest.mark.parametrize("base", ["demo", "demo-siglip"])
@pytest.mark.parametrize("method", ["bias", "coop"])
def test_the_cards_code(method, base, tmp_path):
    pytest.importorskip("torch")
    clip = clipbias.load(base)
    tuned = models.tuned(clip, method, tmp_path)
    out = tmp_path / "out"
    export(tuned, out)
    (image,) = models.pictures(clip, 1)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # held so that its top is on the left
    namespace = models.run_card(out, np.rot90(image), exif=turned)
    expected = models.logits(tuned, image[None]) - clip.params.get("logit_bias", 0)
    models.assert_close(namespace["logits"].numpy(), expected)
    assert namespace["class_names"] == list(models.CLASS_NAMES)


# open_clip's format, read back by clipbias, and by open_clip where that is installed


BASES = (DATA / "tiny_quick_gelu", DATA / "tiny_gelu", "demo")


@pytest.mark.ci
@pytest.mark.parametrize("base", [DATA / "tiny_gelu", "demo"], ids=lambda base: Path(base).name)
def test_it_is_the_folded_checkpoint(base, tmp_path):
    tuned = models.tuned(clipbias.load(base), "bias", tmp_path)
    export(tuned, tmp_path / "out", form="open_clip")
    export(tuned, tmp_path / "plain")
    read, plain = clipbias.load(tmp_path / "out"), clipbias.load(tmp_path / "plain")
    assert (read.config, read.fingerprint) == (plain.config, plain.fingerprint)
    texts = ["a photo of a maine coon.", "naïve café?"]
    np.testing.assert_array_equal(read.tokenize(texts), plain.tokenize(texts))
    # The tensors have OpenAI's names and orientation: `x @ proj` and not transformers' `x @ weight.T`.
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    others = load_file(tmp_path / "plain" / "model.safetensors")
    np.testing.assert_array_equal(tensors["visual.proj"], others["visual_projection.weight"].T)
    theirs = "vision_model.encoder.layers.1.mlp.fc2.bias"
    np.testing.assert_array_equal(tensors["visual.transformer.resblocks.1.mlp.c_proj.bias"], others[theirs])


@pytest.mark.parametrize("base", BASES, ids=lambda base: Path(base).name)
def test_open_clip_computes_the_same(base, tmp_path):
    """With the code of the card, and with texts of its own."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    clip = clipbias.load(base)
    tuned = models.tuned(clip, "bias", tmp_path)
    out = tmp_path / "out"
    export(tuned, out, form="open_clip")
    (image,) = models.pictures(clip, 1)
    namespace = models.run_card(out, image)
    expected = models.logits(tuned, image[None])
    models.assert_close(namespace["logits"].numpy(), expected)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in models.CLASS_NAMES]
    with torch.no_grad():
        features = namespace["model"].encode_text(tokenizer(texts), normalize=True)
    logits = namespace["model"].logit_scale.exp() * namespace["features"] @ features.T
    models.assert_close(logits.detach().numpy(), expected)
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == features.shape[1]


# Perception Encoder, BiomedCLIP and Chinese-CLIP


@pytest.fixture
def model(family: str, tmp_path: Path) -> Reference:
    return families.reference(family, 1, tmp_path)


def trained(model: Reference, method: str, folder: Path) -> Tuned:
    task = families.task_of(model, method)
    write_adapter(folder / "tuned.safetensors", Tuned(task, jax.device_get(families.trained(model, method))))
    return read_adapter(folder / "tuned.safetensors").bind(model.clip)


@pytest.mark.ci
@pytest.mark.parametrize("family", ["pe", "biomed_clip", "chinese_clip"])
def test_a_bias_is_exported_as_a_checkpoint(model, tmp_path):
    tuned = trained(model, "bias", tmp_path)
    with families.sizes(model.geometry):
        assert export(tuned, tmp_path / "out") == "checkpoint"
        plain = clipbias.load(tmp_path / "out")
    task = clipbias.Task(plain, "zero_shot", CLASSES)
    logits = jax.jit(task.logits)(plain.params, task.init(), model.images)
    expected = jax.jit(tuned.task.logits)(model.clip.params, tuned.learnables, model.images)
    assert families.difference(logits, np.asarray(expected)) < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    library = "transformers" if model.family == "chinese_clip" else "open_clip"
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == library


@pytest.mark.parametrize("family", ["chinese_clip"])
def test_transformers_computes_the_same(model, tmp_path):
    """With the code of the card, whose pixels are the model's, too."""
    pytest.importorskip("torch")
    tuned = trained(model, "bias", tmp_path)
    out = tmp_path / "out"
    export(tuned, out)
    (image,) = models.pictures(model.clip, 1)
    logits = models.run_card(out, image)["logits"]
    models.assert_close(logits.numpy(), models.logits(tuned, image[None]))


def test_a_siglip_of_open_clip_has_its_ids_in_transformers(tmp_path):
    """open_clip takes punctuation away, which the files of its tokenizer do not say."""
    import transformers

    model = families.reference("siglip_2", 1, tmp_path)
    text_tokenizer = read_tokenizer(Path(model.clip.files[0]).parent, "siglip", "canonicalize")
    clip = dataclasses.replace(model.clip, tokenizer=text_tokenizer)
    clip.save(tmp_path / "out")
    length = clip.config.text.context_length
    texts = ["a photo of a Cat, Dog.", "two_words  (and) \t more!", "Ünï", ""]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = auto(texts, padding="max_length", max_length=length)["input_ids"]
    np.testing.assert_array_equal(ids, clip.tokenize(texts))
