"""MetaCLIP 2, SigLIP and SigLIP 2 from the hub by name, against what `transformers` computes with PyTorch.

Random weights and small tokenizers, as `transformers` saved them (`tools/reference/write_families.py`).
"""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, encode_image, encode_packed_text, encode_text, pack
from clipbias.clip.text import as_tokens
from tests.further_families import difference
from tests.hub.server import Hub, Repository

DATA = Path(__file__).parents[1] / "data_files"
NAMES = {
    "metaclip_2": "facebook/metaclip-2-worldwide-s16",
    "siglip": "google/siglip-base-patch16-224",
    "siglip_2": "google/siglip2-base-patch16-224",
}
CLASSES = ("cat", "Dog", "golden_retriever", "big bird")
LABELS = jnp.array([2, 0, 3])
# Relative to the largest number
FEATURES = 2e-6
GRADIENTS = 1e-5


@pytest.fixture(params=NAMES)
def family(request: Any, hub: Hub) -> tuple[Clip, dict[str, np.ndarray]]:
    """A model from the hub, and the outputs of the same one in PyTorch."""
    if request.param == "siglip" and not importlib.util.find_spec("sentencepiece"):
        pytest.skip("SigLIP's tokenizer is sentencepiece's")
    return fetched(request.param, hub), safetensors.numpy.load_file(DATA / request.param / "expected.safetensors")


def fetched(folder: str, hub: Hub) -> Clip:
    files = {path.name: path.read_bytes() for path in (DATA / folder).iterdir() if path.stem != "expected"}
    hub.repositories[NAMES[folder]] = Repository(files)
    return clipbias.load(NAMES[folder])


@functools.partial(jax.jit, static_argnums=0)
def outputs(config: Any, params: Any, images: Any, ids: Any, added: Any, packed: Any) -> dict[str, Any]:
    """What the file of expected outputs holds, with adapted texts in both layouts."""

    def loss(added: Any, whole: bool) -> Any:
        adaptation = Adaptation(**added)
        image = encode_image(params, config, images, adaptation)[0]
        if whole:
            text = encode_text(params, config, ids, adaptation)[0]
        else:
            text = encode_packed_text(params, config, packed, adaptation)
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = jnp.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[:, None], 1).mean(), logits

    arrays = {"image_features": encode_image(params, config, images)[0]}
    arrays["text_features"] = encode_text(params, config, as_tokens(ids, config))[0]
    for whole in (True, False):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(added, whole)
        arrays |= {f"{whole}.{k}": v for k, v in {"adapted.loss": value, "adapted.logits": logits}.items()}
        arrays |= {f"{whole}.gradient.{name}": leaf for name, leaf in gradients.items()}
    return arrays


@pytest.mark.ci
@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_features_and_gradients_equal_transformers(family: tuple[Clip, dict[str, np.ndarray]]) -> None:
    clip, expected = family
    ids = expected["tokens"].astype(np.int32)
    added = {name.removeprefix("added."): x for name, x in expected.items() if name.startswith("added.")}
    packed = pack(as_tokens(ids, clip.config, 2), groups=3)
    for name, value in outputs(clip.config, clip.params, expected["images"], ids, added, packed).items():
        reference = expected[name.removeprefix("True.").removeprefix("False.")]
        assert difference(value, reference) < (GRADIENTS if "gradient" in name else FEATURES), name


def test_tokens_and_zero_shot_logits_equal_transformers(family: tuple[Clip, dict[str, np.ndarray]]) -> None:
    clip, expected = family
    task = clipbias.Task(clip, "zero_shot", CLASSES)
    ids = np.asarray(task.tokens.ids)
    tokens = expected["tokens"]
    if clip.config.text.causal:  # nothing behind the end of a text counts
        behind = np.arange(ids.shape[1]) > np.asarray(task.tokens.eos)[:, None]
        ids, tokens = (np.where(behind, 0, x) for x in (ids, tokens[:, : ids.shape[1]]))
    np.testing.assert_array_equal(ids, tokens)
    logits = jax.jit(task.logits)(clip.params, task.init(), expected["images"])
    assert difference(logits, expected["logits"]) < FEATURES


def test_what_is_saved_is_the_same_model(family: tuple[Clip, dict[str, np.ndarray]], tmp_path: Path) -> None:
    clip, _ = family
    clip.save(tmp_path)
    again = clipbias.load(tmp_path)
    assert (again.fingerprint, again.config, again.preprocessing) == (clip.fingerprint, clip.config, clip.preprocessing)
    np.testing.assert_array_equal(again.tokenize(["A big, big bird"]), clip.tokenize(["A big, big bird"]))
    saved = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    folder = next(folder for folder, name in NAMES.items() if name == clip.name)
    original = safetensors.numpy.load_file(DATA / folder / "model.safetensors")
    assert saved.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(saved[name], tensor)
    written, theirs = (json.loads((place / "config.json").read_text()) for place in (tmp_path, DATA / folder))
    assert (written["model_type"], written["architectures"]) == (theirs["model_type"], theirs["architectures"])


def test_siglip_reads_whole_images_in_lower_case(hub: Hub) -> None:
    clip = fetched("siglip_2", hub)
    wide = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 0
    assert abs(clip.preprocess(wide)[:, 0]).max() > 0.1 and clip.preprocessing.mean == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(clip.tokenize(["A CAT"]), clip.tokenize(["a cat"]))
