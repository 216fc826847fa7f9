"""Changes of weights against the float64 rendering of CLIP on weights that were changed by hand."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, encode_image, encode_packed_text, encode_text, pack
from clipbias.clip.text import as_tokens
from tests import helpers
from tests.reference import numpy_clip

LENGTHS = (3, 1, 5, 2)


@pytest.fixture(scope="module")
def reference(tiny):
    """The same weights as the fixture `clip`."""
    return tiny()[1]


def changes(clip, tower):
    """Something of every kind in every place."""
    geometry = getattr(clip.config, tower)
    L, D = geometry.layers, geometry.width
    shapes = {
        ("layers", "norm1", "scale"): (L, D),
        ("layers", "norm2", "bias"): (L, D),
        ("layers", "qkv", "bias"): (L, 3 * D),
        ("layers", "qkv", "down"): (L, 3, D, 2),
        ("layers", "qkv", "up"): (L, 3, 2, D),
        ("layers", "out", "down"): (L, 1, D, 3),
        ("layers", "out", "up"): (L, 1, 3, D),
        ("layers", "fc1", "kernel"): (L, D, geometry.mlp_width),
        ("layers", "fc2", "bias"): (L, D),
        ("projection",): (D, clip.config.projection_width),
        ("post_norm" if tower == "vision" else "final_norm", "scale"): (D,),
    }
    if tower == "vision":
        shapes["pre_norm", "bias"] = (D,)
    rng = np.random.default_rng(0)
    drawn = {path: rng.normal(scale=0.2, size=shape).astype(np.float32) for path, shape in shapes.items()}
    return flax.traverse_util.unflatten_dict(drawn)


def changed_state(state, change, tower):
    """A Hugging Face state dict with the changes added, name by name."""
    state = dict(state)
    prefix = f"{tower}_model"
    change = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), change)
    layers = change["layers"]
    for l in range(len(layers["norm1"]["scale"])):
        name = f"{prefix}.encoder.layers.{l}"
        added = {
            "layer_norm1.weight": layers["norm1"]["scale"][l],
            "layer_norm2.bias": layers["norm2"]["bias"][l],
            "self_attn.out_proj.weight": (layers["out"]["down"][l, 0] @ layers["out"]["up"][l, 0]).T,
            "mlp.fc1.weight": layers["fc1"]["kernel"][l].T,
            "mlp.fc2.bias": layers["fc2"]["bias"][l],
        }
        for part, letter in enumerate("qkv"):
            width = layers["norm1"]["scale"].shape[1]
            added[f"self_attn.{letter}_proj.bias"] = layers["qkv"]["bias"][l, part * width : (part + 1) * width]
            low_rank = layers["qkv"]["down"][l, part] @ layers["qkv"]["up"][l, part]
            added[f"self_attn.{letter}_proj.weight"] = low_rank.T
        for suffix, value in added.items():
            state[f"{name}.{suffix}"] = state[f"{name}.{suffix}"] + value
    outside = {f"{'visual' if tower == 'vision' else 'text'}_projection.weight": change["projection"].T}
    if tower == "vision":
        outside[f"{prefix}.post_layernorm.weight"] = change["post_norm"]["scale"]
        outside[f"{prefix}.pre_layrnorm.bias"] = change["pre_norm"]["bias"]
    else:
        outside[f"{prefix}.final_layer_norm.weight"] = change["final_norm"]["scale"]
    return state | {name: state[name] + value for name, value in outside.items()}


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("explicit", [False, True])
def test_images(clip, reference, explicit):
    images = helpers.random_images(reference.config, 3)
    pixels = np.random.default_rng(1).normal(size=images.shape[1:]).astype(np.float32)
    change = changes(clip, "vision")
    state = changed_state(reference.state, change, "vision")
    expected = numpy_clip.encode_image(state, reference.config, images + pixels).features
    observe = (lambda view: view.probabilities) if explicit else None
    run = jax.jit(functools.partial(encode_image, config=clip.config, observe=observe))
    adaptation = Adaptation(vision_weights=change, pixels=pixels)
    close(run(clip.params, images=images, adaptation=adaptation)[0], expected)
    frozen = numpy_clip.encode_image(reference.state, reference.config, images).features
    assert np.abs(expected - frozen).max() > 0.1 * np.abs(frozen).max()  # it matters


@pytest.mark.ci
def test_texts_in_every_layout(clip, reference):
    ids = helpers.random_tokens(reference.config, LENGTHS)
    change = changes(clip, "text")
    state = changed_state(reference.state, change, "text")
    expected = numpy_clip.encode_text(state, reference.config, ids).features
    adaptation = Adaptation(text_weights=change)
    tokens = as_tokens(ids, clip.config)

    @jax.jit
    def layouts(params, adaptation):
        looking = functools.partial(encode_text, observe=lambda view: view.index)
        features = [encode(params, clip.config, tokens, adaptation)[0] for encode in (encode_text, looking)]
        for groups, chunks in ((1, 1), (4, 2)):
            packed = pack(tokens, groups=groups)
            features.append(encode_packed_text(params, clip.config, packed, adaptation, chunks=chunks))
        return features

    for features in layouts(clip.params, adaptation):
        close(features, expected)
