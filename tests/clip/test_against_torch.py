"""Features and logits against `transformers.CLIPModel`, from its own tiny checkpoints and at ViT-B/16's geometry."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, checkpoint, config, encode_image, encode_text, pack
from clipbias.clip.formats import Tensor
from clipbias.clip.packed_text import encode_packed_text
from clipbias.clip.text import as_tokens
from tests import helpers
from tests.reference import methods, numpy_clip, weights
from tests.reference.cases import TINY, VIT_B_16
from tests.reference.tokenizer import SimpleTokenizer

DATA = Path(__file__).parents[1] / "data_files"
ROUNDING = 3e-6  # of float32 in towers of three layers, relative to the largest number


image_encoder = jax.jit(encode_image, static_argnums=1, static_argnames="observe")
text_encoder = jax.jit(encode_text, static_argnums=1, static_argnames="observe")
packed_encoder = jax.jit(encode_packed_text, static_argnums=1)


def difference(actual: jax.Array, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected number."""
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=TINY)
def tiny(request) -> tuple[Clip, methods.Reference, dict[str, np.ndarray]]:
    """A checkpoint as `transformers` saved it, the reference's reading of it, and the outputs of `CLIPModel`."""
    folder = DATA / request.param
    settings = weights.read_config(folder)
    tokenizer = SimpleTokenizer(folder, settings["text_config"]["max_position_embeddings"])
    state = weights.double(safetensors.numpy.load_file(folder / "model.safetensors"))
    expected = safetensors.numpy.load_file(folder / "expected.safetensors")
    return clipbias.load(folder), methods.Reference(state, settings, tokenizer), expected


def keep_attention(view: clipbias.clip.LayerView) -> jax.Array:
    return view.probabilities


@pytest.mark.parametrize("explicit", [False, True])
def test_features_equal_transformers(tiny, explicit):
    clip, _, expected = tiny
    observe = keep_attention if explicit else None
    images, _ = image_encoder(clip.params, clip.config, expected["images"], observe=observe)
    texts, _ = text_encoder(clip.params, clip.config, expected["tokens"].astype(np.int32), observe=observe)
    assert difference(images, expected["image_features"]) < ROUNDING
    assert difference(texts, expected["text_features"]) < ROUNDING
    scaled = jnp.exp(clip.params["logit_scale"]) * images / jnp.linalg.norm(images, axis=-1, keepdims=True)
    logits = scaled @ (texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)).T
    assert difference(logits, expected["logits"]) < ROUNDING


@pytest.mark.ci
def test_text_needs_no_padding_up_to_the_context(tiny):
    """Tokens after the longest end of text change nothing, and neither does what they are."""
    clip, _, expected = tiny
    tokens = expected["tokens"].astype(np.int32)
    ends = (tokens == clip.config.text.eos_token_id).argmax(-1)
    shorter = tokens[:, : ends.max() + 1].copy()
    for row, end in zip(shorter, ends, strict=True):
        row[end + 1 :] = 0
    features, _ = text_encoder(clip.params, clip.config, shorter)
    assert difference(features, expected["text_features"]) < ROUNDING
    packed = packed_encoder(clip.params, clip.config, pack(as_tokens(shorter, clip.config)))
    assert difference(packed, expected["text_features"]) < ROUNDING


def test_attention_and_taps_equal_the_reference(tiny):
    """With prompts, biases and a random tap, in both towers."""
    clip, reference, expected = tiny
    vision = clip.config.vision
    text = clip.config.text
    settings = reference.config
    seeds = iter(range(100))

    def draw(*shape: int) -> np.ndarray:
        return np.float32(0.3) * weights.deterministic_uniform(77, next(seeds), shape)

    prompts, context, deep = draw(2, 3, vision.width), draw(2, text.width), draw(1, 2, text.width)
    vision_bias, text_bias = draw(vision.layers, vision.width), draw(text.layers, text.width)
    tokens = expected["tokens"]
    count = 1 + vision.patches + 3
    taps = draw(vision.layers, len(expected["images"]), vision.heads, count, count)
    text_taps = draw(text.layers, len(tokens), text.heads, tokens.shape[1], tokens.shape[1])
    adaptation = Adaptation(
        text_context=context, text_prompts=deep, vision_prompts=prompts, vision_bias=vision_bias, text_bias=text_bias
    )
    images, seen = image_encoder(
        clip.params, clip.config, expected["images"], adaptation, taps=taps, observe=keep_attention
    )
    theirs = numpy_clip.encode_image(
        reference.state, settings, expected["images"], prompts=prompts, bias=vision_bias, taps=taps
    )
    assert difference(images, theirs.features) < ROUNDING
    assert difference(seen, np.stack([block.tapped for block in theirs.blocks])) < 3 * ROUNDING

    texts, seen = text_encoder(
        clip.params, clip.config, tokens.astype(np.int32), adaptation, taps=text_taps, observe=keep_attention
    )
    embeddings = numpy_clip.token_embeddings(reference.state, tokens).copy()
    embeddings[:, 1:3] = context
    theirs = numpy_clip.encode_text(
        reference.state, settings, tokens, embeddings=embeddings, prompts={1: deep[0]}, bias=text_bias, taps=text_taps
    )
    assert difference(texts, theirs.features) < ROUNDING
    assert difference(seen, np.stack([block.tapped for block in theirs.blocks])) < 3 * ROUNDING


@pytest.mark.ci
def test_vit_b_16_equals_transformers():
    """The full geometry, its weights drawn from their seed."""
    settings = weights.geometry(**VIT_B_16)
    expected = safetensors.numpy.load_file(DATA / "vit_b_16.safetensors")
    state = weights.random_state_dict(settings, seed=16)
    import transformers

    tensors = {
        name: Tensor(value.shape, value.dtype.name, functools.partial(state.pop, name)) for name, value in state.items()
    }
    geometry = config.from_hugging_face(transformers.CLIPConfig(**settings))
    params = checkpoint.from_tensors(geometry, tensors, where="the reference")
    images = helpers.random_images(settings, 2)
    tokens = helpers.random_tokens(settings, (5, 30, 75))

    @functools.partial(jax.jit, static_argnums=1)
    def encode(params, geometry, images, tokens):
        return encode_image(params, geometry, images)[0], encode_text(params, geometry, tokens)[0]

    image_features, text_features = encode(params, geometry, images, tokens)
    assert difference(image_features, expected["image_features"]) < 3 * ROUNDING
    assert difference(text_features, expected["text_features"]) < 3 * ROUNDING


def test_transformers_loads_what_is_saved(tiny, tmp_path):
    """Only where PyTorch is installed: `CLIPModel` reads a saved model and computes the same."""
    torch = pytest.importorskip("torch")
    import transformers

    clip, _, expected = tiny
    clip.save(tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        outputs = model(
            input_ids=torch.from_numpy(expected["tokens"]),
            pixel_values=torch.from_numpy(expected["images"]).permute(0, 3, 1, 2),
        )
    assert difference(outputs.logits_per_image.numpy(), expected["logits"]) < ROUNDING
