"""`ClipModule` against the functions that it wraps, used as Flax modules are."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from clipbias.clip import (
    Adaptation,
    ClipConfig,
    ClipModule,
    LayerView,
    TextConfig,
    VisionConfig,
    abstract_params,
    encode_image,
    encode_text,
    init_params,
)
from clipbias.errors import ClipbiasError
from tests.documents import ROOT, blocks

CONFIG = ClipConfig(
    vision=VisionConfig(16, 2, 2, 32, image_size=8, patch_size=4),
    text=TextConfig(12, 2, 2, 24, vocabulary_size=30, context_length=7, eos_token_id=29),
    projection_width=6,
)
MODULE = ClipModule(CONFIG)
ROUNDING = 3e-6  # of float32, relative to the largest number


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@pytest.fixture(scope="module")
def ids():
    return jnp.asarray([[28, 3, 4, 5, 29, 0, 0], [28, 7, 7, 9, 1, 2, 29], [28, 1, 2, 3, 29, 0, 0]])


@pytest.fixture(scope="module")
def adaptation():
    keys = iter(jax.random.split(jax.random.key(2), 5))
    return Adaptation(
        text_context=jax.random.normal(next(keys), (2, 12)),
        text_prompts=jax.random.normal(next(keys), (1, 2, 12)),
        vision_prompts=jax.random.normal(next(keys), (2, 3, 16)),
        text_bias=jax.random.normal(next(keys), (2, 12)),
        vision_bias=jax.random.normal(next(keys), (2, 16)),
    )


# Of the functions, compiled once for all tests.
STATIC = {"static_argnums": 1, "static_argnames": ("observe", "intervene")}
image_tower, text_tower = jax.jit(encode_image, **STATIC), jax.jit(encode_text, **STATIC)
apply = jax.jit(MODULE.apply, static_argnames=("method", "observe", "intervene", "mutable"))


def keep_attention(view: LayerView) -> jax.Array:
    return view.probabilities


def test_init_needs_no_inputs_and_gives_the_tree_of_the_functions(images):
    variables = jax.jit(MODULE.init)(jax.random.key(0))
    assert set(variables) == {"params"}
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables["params"])
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(CONFIG))
    by_image = jax.eval_shape(functools.partial(MODULE.init, method="encode_image"), jax.random.key(0), images)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), by_image["params"])
    assert float(jnp.exp(variables["params"]["logit_scale"])) == pytest.approx(1 / 0.07)
    assert not np.array_equal(*variables["params"]["text"]["layers"]["qkv"]["kernel"])


def test_apply_equals_the_functions(params, images, ids, adaptation):
    image_features, text_features = apply({"params": params}, images, ids, adaptation)
    expected = (
        image_tower(params, CONFIG, images, adaptation)[0],
        text_tower(params, CONFIG, ids, adaptation)[0],
    )
    np.testing.assert_allclose(image_features, expected[0], rtol=0, atol=ROUNDING * np.abs(expected[0]).max())
    np.testing.assert_allclose(text_features, expected[1], rtol=0, atol=ROUNDING * np.abs(expected[1]).max())


def test_each_tower_alone(params, images, ids):
    expected = image_tower(params, CONFIG, images)[0], text_tower(params, CONFIG, ids)[0]
    bound = jax.jit(lambda params: MODULE.bind({"params": params}).encode_image(images))
    np.testing.assert_array_equal(bound(params), expected[0])
    bound = jax.jit(lambda params: MODULE.bind({"params": params}).encode_text(ids))
    np.testing.assert_array_equal(bound(params), expected[1])
    image_features, nothing = apply({"params": params}, images)
    np.testing.assert_array_equal(image_features, expected[0])
    assert nothing is None
    nothing, text_features = apply({"params": params}, tokens=ids)
    np.testing.assert_array_equal(text_features, expected[1])
    assert nothing is None


def test_observations_are_sown(params, images, ids, adaptation):
    _, state = apply({"params": params}, images, ids, adaptation, observe=keep_attention, mutable="intermediates")
    (vision,), (text,) = (state["intermediates"][name] for name in ("vision_layers", "text_layers"))
    expected = image_tower(params, CONFIG, images, adaptation, observe=keep_attention)[1]
    np.testing.assert_array_equal(vision, expected)
    np.testing.assert_array_equal(text, text_tower(params, CONFIG, ids, adaptation, observe=keep_attention)[1])
    _, state = jax.eval_shape(functools.partial(MODULE.apply, mutable="intermediates"), {"params": params}, images, ids)
    assert not state.get("intermediates")


def test_gradients_of_weights_adaptation_and_attention(params, images, adaptation):
    taps = jnp.zeros((2, 2, 2, 8, 8))

    def of_module(params, adaptation, taps):
        features = MODULE.apply({"params": params}, images, adaptation, taps=taps, method="encode_image")
        return (features**2).sum()

    def of_function(params, adaptation, taps):
        return (encode_image(params, CONFIG, images, adaptation, taps=taps)[0] ** 2).sum()

    found = jax.jit(jax.grad(of_module, (0, 1, 2)))(params, adaptation, taps)
    expected = jax.jit(jax.grad(of_function, (0, 1, 2)))(params, adaptation, taps)
    assert float(jnp.abs(found[2]).max()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_interventions_reach_the_blocks(params, images, ids):
    def silence(view: LayerView) -> jax.Array:
        return jnp.zeros_like(view.heads_output())

    for method, encode, inputs in (("encode_image", image_tower, images), ("encode_text", text_tower, ids)):
        found = apply({"params": params}, inputs, intervene=silence, method=method)
        np.testing.assert_array_equal(found, encode(params, CONFIG, inputs, intervene=silence)[0])
        assert not np.allclose(found, encode(params, CONFIG, inputs)[0])


def test_half_precision_and_rematerialisation(params, images):
    """The same program as the function's, which differs from that of the defaults."""
    policy = jax.checkpoint_policies.nothing_saveable

    def program(module: ClipModule) -> str:
        return str(jax.make_jaxpr(lambda p: module.apply({"params": p}, images, method="encode_image"))(params))

    def of_function(params):
        return encode_image(params, CONFIG, images, remat=policy, dtype=jnp.bfloat16)[0]

    found = program(ClipModule(CONFIG, dtype=jnp.bfloat16, remat=policy))
    assert found.count("nothing_saveable") == str(jax.make_jaxpr(of_function)(params)).count("nothing_saveable") > 0
    assert "bf16" in found and "bf16" not in program(MODULE)


def test_part_of_another_module(params, images):
    class Classifier(nn.Module):
        """CLIP's image tower with a linear head."""

        @nn.compact
        def __call__(self, images: jax.Array) -> jax.Array:
            return nn.Dense(4, name="head")(ClipModule(CONFIG, name="clip").encode_image(images))

    variables = jax.jit(Classifier().init)(jax.random.key(0), images)
    variables["params"]["clip"] = params
    logits = jax.jit(Classifier().apply)(variables, images)
    head = variables["params"]["head"]
    features = image_tower(params, CONFIG, images)[0]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused(params, images):
    with pytest.raises(ClipbiasError, match=r"images have shape \(2, 4, 8, 3\)"):
        MODULE.apply({"params": params}, images[:, :4])
    with pytest.raises(ScopeParamShapeError):
        MODULE.apply({"params": params | {"logit_scale": jnp.zeros(3)}}, images)


def test_the_example_of_the_documents():
    (code,) = (code for code in blocks(ROOT / "docs/python.md", "python") if "ClipModule" in code)
    names: dict = {}
    exec(code, names)
    assert names["features"].shape == (2, 128)
    assert jax.tree.structure(names["fresh"]["params"]) == jax.tree.structure(names["clip"].params)
