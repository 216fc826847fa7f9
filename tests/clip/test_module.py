"""`ClipModule` against the functions that it wraps, used as Flax modules are."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import (
    Adaptation,
    ClipConfig,
    ClipModule,
    TextConfig,
    VisionConfig,
    abstract_params,
    encode_image,
    encode_text,
)

CONFIG = ClipConfig(
    vision=VisionConfig(16, 2, 2, 32, image_size=8, patch_size=4),
    text=TextConfig(12, 2, 2, 24, vocabulary_size=30, context_length=7, eos_token_id=29),
    projection_width=6,
)
MODULE = ClipModule(CONFIG)
IDS = np.asarray([[28, 3, 4, 5, 29, 0, 0], [28, 7, 7, 9, 1, 2, 29], [28, 1, 2, 3, 29, 0, 0]], np.int32)
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(CONFIG))


@pytest.fixture(scope="module")
def adaptation() -> Adaptation:
    shapes = {"text_context": (2, 12), "vision_prompts": (2, 3, 16), "text_bias": (2, 12), "vision_bias": (2, 16)}
    rng = np.random.default_rng(2)
    return Adaptation(**{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def program(run: Callable, *inputs: Any) -> str:
    """What is computed, operation by operation: equal programs have equal values and gradients."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(run)(*inputs)))


@pytest.mark.ci
def test_init_needs_no_inputs_and_gives_the_tree_of_the_functions():
    variables = jax.jit(MODULE.init)(jax.random.key(0))
    assert set(variables) == {"params"}
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables["params"])
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(CONFIG))
    assert float(jnp.exp(variables["params"]["logit_scale"])) == pytest.approx(1 / 0.07)
    assert not np.array_equal(*variables["params"]["text"]["layers"]["qkv"]["kernel"])
    # OpenAI's `CLIP.initialize_parameters`, for both towers.
    for tower, (width, depth) in {"vision": (16, 2), "text": (12, 2)}.items():
        layers = variables["params"][tower]["layers"]
        residual = width**-0.5 * (2 * depth) ** -0.5
        deviations = {"qkv": width**-0.5, "out": residual, "fc1": (2 * width) ** -0.5, "fc2": residual}
        for name, deviation in deviations.items():
            assert np.std(layers[name]["kernel"]) == pytest.approx(deviation, rel=0.1), name
            assert not np.any(layers[name]["bias"])


@pytest.mark.parametrize(
    "observation",
    [
        {},
        {"taps": True},
        {"observe": lambda view: view.probabilities},
        {"dtype": jnp.bfloat16, "remat": jax.checkpoint_policies.nothing_saveable},
    ],
    ids=lambda observation: "+".join(observation),
)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_is_the_functions_program(params, adaptation, tower, observation):
    encode, inputs = (encode_image, IMAGES) if tower == "image" else (encode_text, IDS)
    if "taps" in observation:
        rows, tokens = (len(IMAGES), 8) if tower == "image" else (len(IDS), 7)
        observation = {"taps": np.zeros((2, rows, 2, tokens, tokens), np.float32)}
    settings = {name: observation[name] for name in ("dtype", "remat") if name in observation}
    options = {name: value for name, value in observation.items() if name not in settings}
    module = ClipModule(CONFIG, **settings)

    def of_module(params: Any, adaptation: Adaptation) -> Any:
        call = functools.partial(module.apply, {"params": params}, inputs, adaptation, method=f"encode_{tower}")
        if "observe" not in options:
            return call(**options)
        features, state = call(**options, mutable="intermediates")
        (seen,) = state["intermediates"][f"{'vision' if tower == 'image' else 'text'}_layers"]
        return features, seen

    def of_function(params: Any, adaptation: Adaptation) -> Any:
        result = encode(params, CONFIG, inputs, adaptation, **observation)
        return result if "observe" in options else result[0]

    result = program(of_module, params, adaptation)
    assert result == program(of_function, params, adaptation)
    if observation:
        assert result != program(lambda *both: encode(both[0], CONFIG, inputs, both[1])[0], params, adaptation)


@pytest.mark.parametrize(("images", "tokens"), [(IMAGES, None), (None, IDS), (IMAGES, IDS)])
def test_both_towers_or_one(params, adaptation, images, tokens):
    def of_functions(params: Any) -> Any:
        image = None if images is None else encode_image(params, CONFIG, images, adaptation)[0]
        return image, None if tokens is None else encode_text(params, CONFIG, tokens, adaptation)[0]

    of_module = program(lambda params: MODULE.apply({"params": params}, images, tokens, adaptation), params)
    assert of_module == program(of_functions, params)


def test_part_of_another_module(params):
    class Classifier(nn.Module):
        """CLIP's image tower with a linear head."""

        @nn.compact
        def __call__(self, images: jax.Array) -> jax.Array:
            return nn.Dense(4, name="head")(ClipModule(CONFIG, name="clip").encode_image(images))

    shapes = jax.eval_shape(Classifier().init, jax.random.key(0), IMAGES)["params"]
    assert set(shapes) == {"clip", "head"} and jax.tree.structure(shapes["clip"]) == jax.tree.structure(params)
    head = {"kernel": np.ones((6, 4), np.float32), "bias": np.ones(4, np.float32)}

    def of_module(clip: Any, head: Any) -> Any:
        return Classifier().apply({"params": {"clip": clip, "head": head}}, IMAGES)

    def of_functions(clip: Any, head: Any) -> Any:
        return nn.Dense(4).apply({"params": head}, encode_image(clip, CONFIG, IMAGES)[0])

    assert program(of_module, params, head) == program(of_functions, params, head)
