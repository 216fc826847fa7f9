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
from clipbias.training import placement
from clipbias.training.step import StepScalars, StepStatic, TrainState, init_state, place_inputs, train_step
from clipbias.tuning import CONSTANTS, Learnables, Recipe
from clipbias.tuning.method import without_constants
from clipbias.tuning.task import Classifier
from tests.reference import optimizers
from tests.reference.differences import along_directions, in_full

CLASS_NAMES = ("cat", "maine_coon", "Golden Retriever's pup", "bird", "757-200")
LABELS = np.array([4, 0, 2, 2], np.int32)
# Rounding of float32: of logits relative to the largest, of gradients to an array's norm (measured: 1.3e-5 at most, of
# keys, with fused multiplications and additions; 6e-6 without), of steps to the longest of an array (the root of Adam's
# `1 - 0.999^t` has up to 1e-5) beside the rounding of values.
LOGITS = 1e-5
GRADIENTS = 2e-5
MOVED = 1.5e-5
EPSILON = 1.2e-7
RATES = (0.02, 0.03, 0.01)
Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Step:
    """Images `[B, R, R, 3]` and number of a step, and the values before it."""

    images: np.ndarray
    number: int
    start: Values  # a transport plan is made of these, and held fixed in gradients


# The terms of the loss and the logits, in float64.
Rule = Callable[[Values, Step], tuple[dict[str, float], np.ndarray]]
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
    arrays = {}
    for key, tree in changes.items():
        prefix = f"{key.removesuffix('_weights')}_model"
        for part, leaves in tree.get("layers", {}).items():
            for leaf, stacked in leaves.items():
                for l, value in enumerate(np.asarray(stacked, np.float64)):
                    layer = f"{prefix}.encoder.layers.{l}"
                    if part != "qkv":
                        arrays[f"{layer}.{PARTS[part]}.{LEAVES[leaf]}"] = value
                    for letter, piece in zip("qkv", np.split(value, 3), strict=True) if part == "qkv" else ():
                        arrays[f"{layer}.self_attn.{letter}_proj.{LEAVES[leaf]}"] = piece
        for part, leaves in tree.items():
            for leaf, value in leaves.items() if part != "layers" else ():
                arrays[f"{prefix}.{OUTER[part]}.{LEAVES[leaf]}"] = np.asarray(value, np.float64)
    return arrays


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Compares relative to the largest expected number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape, what
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-30), err_msg=what
    )


def close_trees(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> None:
    """The same of arrays by name, each by itself."""
    assert actual.keys() == expected.keys()
    for name in expected:
        close(actual[name], expected[name], tolerance, name)


def drawn(shapes: Any, size: float, seed: int = 0) -> Any:
    """Normally distributed arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(scale=size, size=leaf.shape).astype(np.float32), shapes)


def start(task: clipbias.Task, size: float = 0.3, seed: int = 0) -> Learnables:
    """Random learnables, none of them zero, and the constants of the method."""
    learnables = drawn(without_constants(task.shapes), size, seed)
    return {**learnables, CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in task.shapes else learnables


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
        self.recipe = recipe
        self.start = jax.tree.map(np.asarray, start)
        mesh = placement.make_mesh(data=1, devices=jax.devices()[:1])
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
        self.names = list(shown)
        self.shape = jax.tree.structure(shapes)
        self.program = jax.jit(jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts)))

    def arguments(self, state: TrainState, rate: float, **batch: np.ndarray) -> tuple:
        batch = {name: value[None] for name, value in batch.items()}
        return self.inputs, state, self.batch | batch, StepScalars(np.full(1, rate, np.float32))

    def step(self, state: TrainState, rate: float, **batch: np.ndarray) -> tuple[TrainState, float, dict[str, Any]]:
        """The next state, the loss before, and its terms and the logits; `batch` are parts of it to be others."""
        outputs = jax.device_get(self.program(*jax.tree.leaves(self.arguments(state, rate, **batch))))
        count = self.shape.num_leaves
        state, metrics = jax.tree.unflatten(self.shape, outputs[:count])
        return state, metrics["loss"][0], dict(zip(self.names, outputs[count:], strict=True))

    def taken(self, before: TrainState, after: TrainState) -> Learnables:
        return taken(self.recipe, before, after)


def taken(recipe: Recipe, before: TrainState, after: TrainState) -> Learnables:
    """The gradient that a step took, by the moving averages that the optimiser holds of it before and after."""
    is_sgd = recipe.optimizer == "sgd"
    old, new = (optax.tree_utils.tree_get(x.opt_state, "trace" if is_sgd else "mu") for x in (before, after))
    momentum, share = (recipe.momentum, 1.0) if is_sgd else (0.9, 0.1)
    decay = 0.0 if recipe.optimizer == "adamw" else recipe.weight_decay  # AdamW's is not in the gradient

    def gradient(old: Any, new: Any, value: Any) -> np.ndarray:
        old, new, value = (np.asarray(x[0], np.float64) for x in (old, new, value))
        return (new - momentum * old) / share - decay * value

    return jax.tree.map(gradient, old, new, before.learnables)


Flat = Callable[[Learnables], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Training:
    """How steps are compared with NumPy's.

    Attributes:
      recipe: of the package's steps.
      optimizer: of NumPy's; it keeps its own state, so each training has one.
      flat: the package's learnables, or their gradients, by the names that a rule has for them.
      frozen: what a rule's values have besides, where learnables are changes of it.
      unseen: names of which the loss depends by rounding alone.
      times: the optimiser is given so many times the gradient of the loss.
      combine: the gradient of a step, of those of the loss' terms. The first step's is compared in every coordinate.
    """

    recipe: Recipe = SGD
    optimizer: optimizers.Optimizer = dataclasses.field(default_factory=optimizers.SGD)
    flat: Flat = without_constants
    frozen: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unseen: Collection[str] = ()
    times: float = 1.0
    combine: Callable[[list[Values]], Values] | None = None

    def values(self, state: TrainState) -> Values:
        """What a rule is given for a state's learnables, in float64."""
        flat = self.flat(jax.tree.map(lambda leaf: leaf[0], state.learnables))
        return {name: np.asarray(x, np.float64) + self.frozen.get(name, 0.0) for name, x in flat.items()}

    def check(
        self,
        terms: Callable[[Values], Mapping[str, float]],
        rate: float,
        before: TrainState,
        after: TrainState,
        number: int,
    ) -> None:
        """Holds a step's gradient to differences of the loss, and what it changes to NumPy's with the same gradient.

        A random direction for each array in each step, unless in full.
        """
        start = self.values(before)
        slopes = {name: np.asarray(x, np.float64) for name, x in self.flat(taken(self.recipe, before, after)).items()}
        end = self.values(after)
        expected = self.optimizer.step(start, slopes, rate)
        for name, value in expected.items():
            moved = np.abs(value - start[name]).max(initial=0)
            assert np.abs(end[name] - value).max(initial=0) <= MOVED * moved + EPSILON * np.abs(value).max(initial=0), (
                name
            )
        if self.combine is not None:
            if number == 0:
                expected = self.combine(in_full(lambda moved: np.array([*terms(moved).values()]), start))
                close_trees(slopes, expected, GRADIENTS)
            return
        largest = max(np.abs(slope).max(initial=0) for slope in slopes.values())
        assert all(np.abs(slopes[name]).max() < GRADIENTS * largest for name in self.unseen)
        seen = {name: slope / self.times for name, slope in slopes.items() if name not in self.unseen}
        errors = along_directions(
            lambda moved: sum(terms({**start, **moved}).values()),
            {name: start[name] for name in seen},
            seen,
            directions=1,
            seed=7 + number,
        )
        assert max(errors.values()) < GRADIENTS, errors


def added(gradients: list[Values]) -> Values:
    """The gradient of a sum."""
    return {name: sum(gradient[name] for gradient in gradients) for name in gradients[0]}


def check_training(
    task: clipbias.Task,
    start: Learnables,
    rule: Rule,
    training: Training | None = None,
    *,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> Steps:
    """Holds logits, terms of the loss, gradients and updates of a few steps to NumPy's."""
    training = training or Training()
    raw, images = pictures(task.clip.config.vision.image_size)
    run = Steps(task, start, training.recipe, raw, seed=seed)
    state = run.first
    assert jax.tree.map(np.shape, dict(run.start)) == jax.tree.map(np.shape, dict(task.shapes))
    for number, rate in enumerate(rates):
        before = state
        values = training.values(state)
        step = Step(images, number, values)
        terms, logits = rule(values, step)
        state, loss, gradients = run.step(before, rate)
        assert loss == pytest.approx(sum(terms.values()), rel=LOGITS)
        close(gradients.pop("logits"), logits, LOGITS, "logits")
        assert gradients.keys() == terms.keys()
        for name, value in terms.items():
            assert np.mean(gradients[name]) == pytest.approx(value, rel=LOGITS, abs=LOGITS), name
        training.check(lambda moved, step=step: rule(moved, step)[0], rate, before, state, number)
    run.last = state
    return run
