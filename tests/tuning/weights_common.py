"""What the tests of methods on CLIP's own weights share: names of weights here and there, and steps of training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pytest

import clipbias
from clipbias.training import mesh as meshes
from clipbias.training.step import TrainState, init_state, place_inputs, train_step
from clipbias.tuning import Learnables, Recipe
from clipbias.tuning.learnables import without_constants
from tests.reference.differences import against_differences

CLASS_NAMES = ("cat", "maine_coon", "Golden Retriever's pup", "bird", "757-200")
LABELS = np.array([4, 0, 2, 2], np.int32)
LOGITS, GRADIENTS, TRAINED = 1e-5, 5e-5, 2e-4
SGD = Recipe(
    learning_rate=0.05,
    epochs=1,
    warmup_epochs=0,
    warmup_learning_rate=0.0,
    batch_size=4,
    momentum=0.9,
    weight_decay=5e-4,
)
MEAN, DEVIATION = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])

# Parts of a block and LayerNorms outside of them, as a Hugging Face state dict names them.
PARTS = {
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
OUTER = {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm", "final_norm": "final_layer_norm"}
LEAVES = {"scale": "weight", "bias": "bias"}


def named(changes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Biases and scales, `{"vision_weights": …, "text_weights": …}`, by their names in a Hugging Face state dict."""
    found = {}
    for key, tree in changes.items():
        prefix = f"{key.removesuffix('_weights')}_model"
        for part, leaves in tree.get("layers", {}).items():
            for leaf, stacked in leaves.items():
                for l, value in enumerate(np.asarray(stacked, np.float64)):
                    layer = f"{prefix}.encoder.layers.{l}"
                    if part != "qkv":
                        found[f"{layer}.{PARTS[part]}.{LEAVES[leaf]}"] = value
                    for letter, one in zip("qkv", np.split(value, 3), strict=True) if part == "qkv" else ():
                        found[f"{layer}.self_attn.{letter}_proj.{LEAVES[leaf]}"] = one
        for part, leaves in tree.items():
            for leaf, value in leaves.items() if part != "layers" else ():
                found[f"{prefix}.{OUTER[part]}.{LEAVES[leaf]}"] = np.asarray(value, np.float64)
    return found


def close(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Compares relative to the largest expected number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape, what
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-30), err_msg=what
    )


def close_trees(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> None:
    """The same of arrays by name, each by itself."""
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name], tolerance, name)


def drawn(shapes: Any, size: float, seed: int = 0) -> Any:
    """Normally distributed arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(scale=size, size=leaf.shape).astype(np.float32), shapes)


def pictures(size: int, count: int = len(LABELS)) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[B, R, R, 3]`, and the same normalised, float64."""
    raw = np.random.default_rng(9).integers(0, 256, (count, size, size, 3), np.uint8)
    return raw, (raw / 255 - MEAN) / DEVIATION


def trained(
    task: clipbias.Task,
    start: Learnables,
    recipe: Recipe,
    images: np.ndarray,
    labels: np.ndarray,
    rates: Sequence[float],
    seeds: Sequence[int] = (0,),
) -> tuple[Learnables, np.ndarray]:
    """One step of all images per learning rate, by runs that differ in their seed alone.

    Returns:
      The first run's learnables after them, and the losses before them, `[steps, runs]`.
    """
    states, losses = zip(*steps(task, start, recipe, images, labels, rates, seeds), strict=True)
    return jax.tree.map(lambda leaf: leaf[0], states[-1].learnables), np.stack(losses)


def steps(
    task: clipbias.Task,
    start: Learnables,
    recipe: Recipe,
    images: np.ndarray,
    labels: np.ndarray,
    rates: Sequence[float],
    seeds: Sequence[int] = (0,),
    mask: Sequence[bool] | None = None,
) -> Iterator[tuple[TrainState, np.ndarray]]:
    """The states after such steps, and the losses before them, `[runs]`; `mask` says which images count."""
    mesh, runs = meshes.make_mesh(data=1, devices=jax.devices()[:1]), len(seeds)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * runs), start)
    given, state = place_inputs(mesh, task, task.clip.params, stacked, seeds), init_state(task.method, recipe, stacked)
    batch = {"images": images, "labels": labels, "mask": np.ones(len(labels), bool) if mask is None else np.array(mask)}
    batch = jax.tree.map(lambda x: np.stack([x] * runs), batch)
    for rate in rates:
        state, metrics = train_step(
            *(task.classifier, task.clip.preprocessing, recipe, task.clip.params, given, state, batch),
            np.full(runs, rate, np.float32),
        )
        yield jax.device_get(state), np.asarray(metrics["loss"])


def taken(start: Learnables, recipe: Recipe, state: TrainState) -> Learnables:
    """The gradient that a first step took from `start`, by the moving average that the optimiser then holds of it."""
    momentum = optax.tree_utils.tree_get(state.momentum, "trace" if recipe.optimizer == "sgd" else "mu")
    share = {"sgd": 1.0}.get(recipe.optimizer, 0.1)
    decay = 0.0 if recipe.optimizer == "adamw" else recipe.weight_decay  # AdamW's is not in the gradient
    return jax.tree.map(lambda v, p: np.asarray(v[0]) / share - decay * p, momentum, without_constants(start))


def check_differences(of_numpy: Callable[..., tuple], learnables: Learnables, images: np.ndarray) -> None:
    """Holds the gradient of a reference to finite differences of its terms, `(losses, gradients, …)` of two images."""
    learned = {name: np.asarray(value, np.float64) for name, value in without_constants(learnables).items()}

    def run(learned: dict) -> tuple:
        return of_numpy(learned, images, np.array([1, 0]))

    errors = against_differences(lambda one: sum(run(one)[0].values()), learned, run(learned)[1], entries=1)
    assert set(errors) == set(learned) and max(errors.values()) < 1e-6


def check_steps(
    task: clipbias.Task, learnables: Learnables, of_numpy: Callable[..., tuple], recipe: Recipe, optimizer: Any
) -> None:
    """Holds steps of training, and the gradient of the first, to those that an optimiser makes with a reference's."""
    rates = (0.02, 0.03, 0.01)
    raw, images = pictures(task.clip.config.vision.image_size)
    values = {name: np.asarray(value, np.float64) for name, value in without_constants(learnables).items()}
    for step, (state, loss) in enumerate(steps(task, learnables, recipe, raw, LABELS, rates)):
        expected, slopes, *_ = of_numpy(values, images, LABELS)
        assert loss[0] == pytest.approx(sum(expected.values()), rel=TRAINED)
        if step == 0:
            close_trees(taken(learnables, recipe, state), slopes, GRADIENTS)
        values = optimizer.step(values, slopes, rates[step])
    close_trees(jax.tree.map(lambda leaf: leaf[0], state.learnables), values, TRAINED)
