"""Methods on MetaCLIP 2 and SigLIP: three steps of SGD against PyTorch's in float64, and what makes no sense refused.

Expected numbers are made by `tools/reference/write_families.py`, by hooks on the models of `transformers`.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from clipbias.export import export
from clipbias.tuning.adapter import make_adapter, read_adapter, save_adapter
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.features import Samples
from tests import helpers
from tests.reference import heads_gda
from tests.reference.numpy_clip import unit

DATA = Path(__file__).parents[1] / "data_files"
CLASSES = ("cat", "Dog", "golden_retriever", "big bird")
LABELS = jnp.array([2, 0, 3])
RATE = 0.05
STEPS = 3
OPTIONS: dict[str, dict[str, Any]] = {"ivlp": {"text_tokens": 2, "vision_tokens": 2}}
Arrays = dict[str, np.ndarray]


def loaded(folder: str) -> tuple[Clip, Arrays]:
    return clipbias.load(DATA / folder), safetensors.numpy.load_file(DATA / folder / "expected.safetensors")


@pytest.fixture(scope="module")
def siglip() -> tuple[Clip, Arrays]:
    return loaded("siglip_2")


def learned(expected: Arrays, method: str, when: str) -> dict[str, Any]:
    """A method's learnables as the package has them."""
    prefix = f"{method}.{when}."
    flat = {name.removeprefix(prefix): jnp.asarray(x) for name, x in expected.items() if name.startswith(prefix)}
    if method != "clip_lora":
        return flat
    pairs = {tower: {part: flat[f"lora.{tower}.{part}"] for part in ("down", "up")} for tower in ("vision", "text")}
    return {tower: {"qkv": pair} for tower, pair in pairs.items()}


def check_training(clip: Clip, expected: Arrays, method: str) -> None:
    task = clipbias.Task(clip, method, CLASSES, **OPTIONS.get(method, {}))
    learnables, trained = learned(expected, method, "before"), learned(expected, method, "after")
    assert jax.tree.map(jnp.shape, learnables) == jax.tree.map(jnp.shape, jax.eval_shape(task.init))

    @jax.jit
    def step(learnables: Any, velocity: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(task.loss, argnums=1)(clip.params, learnables, expected["images"], LABELS)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, gradient, learnables)
        return jax.tree.map(lambda p, v: p - RATE * v, learnables, velocity), velocity, loss

    velocity = jax.tree.map(jnp.zeros_like, learnables)
    for _ in range(STEPS):
        learnables, velocity, loss = step(learnables, velocity)
    assert float(loss) == pytest.approx(float(expected[f"{method}.loss"]), rel=1e-5)
    for leaf, other in zip(jax.tree.leaves(learnables), jax.tree.leaves(trained), strict=True):
        assert float(jnp.abs(leaf - other).max() / jnp.abs(other).max()) < 1e-5


@pytest.mark.parametrize("method", helpers.short(["bias", "bias_by_kind", "ivlp", "taskres", "clip_lora"], "ivlp"))
def test_three_steps_equal_pytorch(siglip: tuple[Clip, Arrays], method: str) -> None:
    check_training(*siglip, method)


@pytest.mark.long
def test_three_steps_of_metaclip_2_equal_pytorch() -> None:
    check_training(*loaded("metaclip_2"), "ivlp")


def test_gda_equals_the_reference(siglip: tuple[Clip, Arrays]) -> None:
    clip, expected = siglip
    task = clipbias.Task(clip, "gda", CLASSES)
    rows = np.random.default_rng(0).normal(size=(2, 8, clip.config.projection_width)).astype(np.float32)
    labels = np.tile(np.arange(len(CLASSES)), 2)
    text = expected["text_features"][None]
    samples = Samples(features=rows, labels=labels, text=text, scale=100.0)
    assert isinstance(task.method, FeatureMethod)
    learnables = task.method.support(task.init(), samples)
    weight, bias = heads_gda.few_shot(features=rows, labels=labels, classes=len(CLASSES))
    image = unit(expected["image_features"].astype(np.float64))
    expected_logits = 100 * image @ unit(text[0].astype(np.float64)).T + 0.1 * (image @ weight.T + bias)
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, expected["images"]), np.float64)
    expected_logits += float(clip.params["logit_bias"])
    assert np.abs(logits - expected_logits).max() < 1e-5 * np.abs(expected_logits).max()


def test_a_bias_is_exported_as_a_checkpoint_and_transferred(siglip: tuple[Clip, Arrays], tmp_path: Path) -> None:
    """Bias by kind of the vision tower is one vector per layer there, which folds into the weights as bias tuning's."""
    clip, expected = siglip
    task = clipbias.Task(clip, "bias_by_kind", CLASSES, text_tower=False)
    learnables = {"vision_bias": learned(expected, "bias_by_kind", "after")["vision_bias"]}
    save_adapter(tmp_path / "adapter.safetensors", task, learnables)
    adapter = read_adapter(tmp_path / "adapter.safetensors")
    assert export(adapter, clip, tmp_path / "model") == "checkpoint"
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert content["architectures"] == ["SiglipModel"]
    plain = clipbias.load(tmp_path / "model")
    logits = jax.jit(task.logits)(clip.params, learnables, expected["images"])
    again = jax.jit(clipbias.Task(plain, "zero_shot", CLASSES).logits)(plain.params, {}, expected["images"])
    np.testing.assert_allclose(again, logits, rtol=1e-5)
    other, transferred = make_adapter(task, learnables).bind(clip, ["a tree"])
    assert other.class_names == ("a tree",) and transferred["vision_bias"].shape == (3, 1, 16)
