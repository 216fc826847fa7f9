"""What the tests of methods on CLIP's own weights share: names of weights here and there, and steps of training."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

import clipbias
from clipbias.training import mesh as meshes
from clipbias.training.step import train_step
from clipbias.training.step_inputs import StepScalars, StepStatic, TrainState, init_state, place_inputs
from clipbias.tuning import Learnables, Recipe
from clipbias.tuning.classifier import Classifier
from clipbias.tuning.learnables import without_constants
from tests.reference import optimizers
from tests.reference.differences import against_differences

CLASS_NAMES = ("cat", "maine_coon", "Golden Retriever's pup", "bird", "757-200")
LABELS = np.array([4, 0, 2, 2], np.int32)
LOGITS, GRADIENTS, TRAINED = 1e-5, 5e-5, 2e-4
RATES = (0.02, 0.03, 0.01)
# Of values by name, images and the number of a step: the loss' terms, gradients and logits.
Rule = Callable[[dict[str, np.ndarray], np.ndarray, int], tuple[dict[str, float], Mapping[str, np.ndarray], np.ndarray]]
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
        found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-30), err_msg=what
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


@dataclasses.dataclass(frozen=True)
class Named(Classifier):
    """Names the terms of the loss and the logits, by which `Steps` finds them in the program of a step."""

    def losses(self, *arguments: Any, **options: Any) -> Any:
        terms, logits = super().losses(*arguments, **options)
        for name, value in {**terms, "logits": logits}.items():
            checkpoint_name(value, f"seen/{name}")
        return terms, logits


class Steps:
    """Steps of training of all images, by one program that also says the terms of the loss and the logits.

    Compiling takes nearly all of a test's time, so this is the only program of a method that is compared with NumPy.
    """

    def __init__(
        self,
        task: clipbias.Task,
        start: Learnables,
        recipe: Recipe,
        images: np.ndarray,
        labels: np.ndarray = LABELS,
        seed: int = 0,
    ) -> None:
        self.recipe, self.start = recipe, jax.tree.map(np.asarray, start)
        mesh = meshes.make_mesh(data=1, devices=jax.devices()[:1])
        stacked = jax.tree.map(lambda leaf: leaf[None], self.start)
        self.inputs = place_inputs(mesh, task, task.clip.params, stacked, (seed,))
        self.first = init_state(task.method, recipe, stacked)
        self.batch = {"images": images[None], "labels": labels[None], "mask": np.ones((1, len(labels)), bool)}
        classifier = Named(**{field.name: getattr(task.classifier, field.name) for field in fields(task.classifier)})
        step = functools.partial(train_step.__wrapped__, StepStatic(classifier, task.clip.preprocessing, recipe))
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(*self.arguments(self.first, 0.0))
        shown = {
            equation.params["name"].removeprefix("seen/"): equation.outvars[0]
            for equation in closed.jaxpr.eqns
            if equation.primitive.name == "name" and equation.params["name"].startswith("seen/")
        }
        results = [*closed.jaxpr.outvars, *shown.values()]
        origin = closed.jaxpr.debug_info._replace(result_paths=("",) * len(results))
        jaxpr = closed.jaxpr.replace(outvars=results, debug_info=origin)
        self.names, self.shape = list(shown), jax.tree.structure(shapes)
        self.program = jax.jit(jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts)))

    def arguments(self, state: TrainState, rate: float, **batch: np.ndarray) -> tuple:
        batch = {name: value[None] for name, value in batch.items()}
        return self.inputs, state, self.batch | batch, StepScalars(np.full(1, rate, np.float32))

    def step(self, state: TrainState, rate: float, **batch: np.ndarray) -> tuple[TrainState, float, dict[str, Any]]:
        """The next state, the loss before, and its terms and the logits; `batch` are parts of it to be others."""
        found = jax.device_get(self.program(*jax.tree.leaves(self.arguments(state, rate, **batch))))
        count = self.shape.num_leaves
        state, metrics = jax.tree.unflatten(self.shape, found[:count])
        return state, metrics["loss"][0], dict(zip(self.names, found[count:], strict=True))

    def taken(self, state: TrainState) -> Learnables:
        return taken(self.start, self.recipe, state)


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


def check_training(
    task: clipbias.Task,
    start: Learnables,
    rule: Rule,
    recipe: Recipe = SGD,
    optimizer: optimizers.Optimizer | None = None,
    *,
    flat: Callable[[Learnables], Mapping[str, Any]] = without_constants,
    frozen: Mapping[str, np.ndarray] | None = None,
    unseen: Collection[str] = (),
    rates: Sequence[float] = RATES,
    seed: int = 0,
    tolerances: tuple[float, float, float] = (LOGITS, GRADIENTS, TRAINED),
) -> Steps:
    """Holds logits, terms of the loss, the gradient that a step takes and three steps to NumPy's.

    Args:
      rule: the terms, gradients and logits of values by name, images and the number of a step.
      optimizer: of NumPy; SGD unless given.
      flat: the package's learnables, or their gradients, as the rule has them.
      frozen: what the rule's values have besides, where learnables are changes of it.
      unseen: of which the loss depends by rounding alone.
    """
    raw, images = pictures(task.clip.config.vision.image_size)
    optimizer, frozen = optimizer or optimizers.SGD(), frozen or {}
    of_logits, of_gradients, of_steps = tolerances

    def values(learnables: Learnables) -> dict[str, np.ndarray]:
        return {name: np.asarray(x, np.float64) + frozen.get(name, 0) for name, x in flat(learnables).items()}

    run = Steps(task, start, recipe, raw, seed=seed)
    state, exact = run.first, values(start)
    assert jax.tree.map(np.shape, dict(run.start)) == jax.tree.map(np.shape, dict(task.shapes))
    for number, rate in enumerate(rates):
        terms, slopes, logits = rule(exact, images, number)
        state, loss, found = run.step(state, rate)
        assert loss == pytest.approx(sum(terms.values()), rel=of_steps if number else of_logits)
        if number == 0:
            close(found.pop("logits"), logits, of_logits, "logits")
            assert found.keys() == terms.keys()
            for name, value in terms.items():
                assert np.mean(found[name]) == pytest.approx(value, rel=of_logits, abs=of_logits), name
            taken, largest = flat(run.taken(state)), max(np.abs(slope).max(initial=0) for slope in slopes.values())
            assert all(np.abs(taken[name]).max() < of_gradients * largest for name in unseen)
            close_trees(*({n: x for n, x in each.items() if n not in unseen} for each in (taken, slopes)), of_gradients)
        exact = optimizer.step(exact, slopes, rate)
    close_trees(values(jax.tree.map(lambda leaf: leaf[0], state.learnables)), exact, of_steps)
    return run
