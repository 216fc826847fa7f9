"""Training of methods against their rules in NumPy: logits, terms of the loss, gradients and three steps of each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.method import without_constants
from tests import helpers
from tests.reference import (
    inner_parts,
    mma,
    mmrl,
    optimizers,
    prompts_cocoop,
    prompts_plot,
    prompts_proda,
    tcp,
    upl,
    visual_prompting,
)
from tests.reference.methods import Reference
from tests.reference.numpy_clip import cross_entropy
from tests.tuning.weights_common import CLASS_NAMES, LABELS, RATES, SGD, Step, Training, Values, check_training, drawn

pytestmark = pytest.mark.ci

Rule = Callable[[Reference, Task, Values, Step], tuple[Mapping[str, float], np.ndarray]]
CLIPS: dict[str, dict[str, Any]] = {
    "long": {"vision": (16, 3, 2), "image_size": 8, "projection": 48, "context_length": 64},
    "other": {"seed": 5, "vision": (16, 4, 2), "text": (24, 3, 3), "projection": 20},  # of unequal width and depth
    "deep_text": {"seed": 5, "vision": (16, 2, 2), "text": (24, 4, 3), "projection": 20, "context_length": 40},
    "pixels": {"vision": (16, 2, 2), "image_size": 16},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training and NumPy's rule of it.

    Attributes:
      rule: terms of the loss and logits.
      clip: of `CLIPS`.
      options, template: of the task.
      size: of the random learnables; the method's own where it is 0.
      shapes: of the learnables, where the reference says them.
      training: made anew for each test, since NumPy's optimiser keeps a state.
      rates: of the steps.
    """

    rule: Rule
    clip: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    template: str = "a photo of a {}."
    size: float = 0.4
    shapes: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]] | None = None
    training: Callable[[], Training] = Training
    rates: tuple[float, ...] = RATES


def of_logits(logits: Callable[[Reference, Values, Step], np.ndarray]) -> Rule:
    """The mean cross-entropy of logits."""

    def rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
        scores = logits(reference, values, step)
        return {"cross_entropy": cross_entropy(scores, LABELS)}, scores

    return rule


def mma_rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
    return mma.mma_losses(reference, CLASS_NAMES, values, step.images, LABELS, factor=0.05)


def mmrl_rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
    options = {"template": "a painting of a {}.", "weight": 2.0}
    losses, z, z_r = mmrl.mmrl_losses(reference, CLASS_NAMES, values, step.images, LABELS, **options)
    assert min(losses.values()) > 2e-3
    return losses, 0.7 * z + 0.3 * z_r


def tcp_rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
    options = {"template": "a painting of a {}, a type of cat.", "suffix": ", a type of cat.", "block": 2}
    losses, logits = tcp.tcp_losses(reference, CLASS_NAMES, values, step.images, LABELS, **options)
    assert losses["distillation"] > 0.1
    return losses, logits


def upl_rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
    assert task.text.shared == 6  # the start and each set's context
    scores = upl.logits(reference, CLASS_NAMES, values, step.images)
    return upl.losses(reference, CLASS_NAMES, values, step.images, LABELS), scores


def proda_rule(reference: Reference, task: Task, values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
    """Of the sets that the run's seed says."""
    sets = np.asarray(task.method.templates_in_training(jax.random.key(SEED), step.number)).tolist()
    return prompts_proda.losses(reference, CLASS_NAMES, values, step.images, LABELS, sets)


def by(optimizer: str, epsilon: float, decay: float) -> Callable[[], Training]:
    """Adam or AdamW with a decay of the size of a step, and an epsilon that keeps rounding out of the steps' signs."""
    recipe = dataclasses.replace(SGD, optimizer=optimizer, weight_decay=decay, epsilon=epsilon)
    kind = {"adam": optimizers.Adam, "adamw": optimizers.AdamW}[optimizer]
    return lambda: Training(recipe, kind(epsilon=epsilon, weight_decay=decay))


def scaled() -> Training:
    """Steps are given the gradient over MMA's factor, and decay as it is: as large a part of a step."""
    recipe = dataclasses.replace(SGD, weight_decay=10.0)
    optimizer = optimizers.SGD(weight_decay=10.0)
    return Training(recipe, optimizer, flat=inner_parts.flatten, times=1 / 0.05)


def warmed() -> Training:
    """Visual prompting's own schedule."""
    recipe = clipbias.tuning.make_method("visual_prompting").recipe_for(SGD, 16)
    recipe = dataclasses.replace(recipe, learning_rate=0.5, epochs=6, warmup_epochs=2)
    np.testing.assert_allclose(recipe.step_rates(len(LABELS)), STRIP_RATES, rtol=1e-12)
    return Training(recipe, optimizers.SGD(weight_decay=0.0))


SEED = 7
STRIP_RATES = tuple(visual_prompting.rates(0.5, 2, 6))
STRIPS = {
    **dict.fromkeys(("vision_up", "vision_down"), (3, 16, 3)),
    **dict.fromkeys(("vision_left", "vision_right"), (10, 3, 3)),
}
CASES = {
    "cocoop": Case(of_logits(lambda clip, x, step: prompts_cocoop.logits(clip, CLASS_NAMES, x, step.images)), "long"),
    "plot": Case(
        of_logits(
            lambda clip, x, step: prompts_plot.plot_logits(
                clip, CLASS_NAMES, x, step.images, pooled=True, point=step.start
            )
        ),
        "long",
        {"pooled": True, "tokens": 5, "sets": 3},
    ),
    "proda": Case(proda_rule, "long", {"tokens": 6, "sets": 8, "sets_per_step": 2}),
    "upl": Case(upl_rule, "long", {"tokens": 5, "sets": 3}),
    "mma": Case(
        mma_rule,
        "other",
        {"blocks": 2, "width": 6, "factor": 0.05},  # large enough that float32 sees what is added to float32
        template="a {} of another dataset.",
        shapes=lambda config: mma.mma_shapes(config, blocks=2, width=6),
        training=scaled,
        rates=(2e-4, 3e-4, 1e-4),
    ),
    "mmrl": Case(
        mmrl_rule,
        "other",
        {"tokens": 3, "blocks": 2, "space": 10, "weight": 2.0},
        template="a painting of a {}.",
        size=1.0,
        shapes=lambda config: mmrl.mmrl_shapes(config, tokens=3, blocks=2, space=10),
        training=by("adamw", 1e-1, 0.5),
    ),
    "tcp": Case(
        tcp_rule,
        "deep_text",
        {"block": 2},
        template="a painting of a {}, a type of cat.",
        size=0.3,
        training=by("adam", 1e-2, 0.1),
    ),
    "visual_prompting": Case(
        of_logits(lambda clip, x, step: visual_prompting.logits(clip, CLASS_NAMES, x, step.images)),
        "pixels",
        {"width": 40},  # 3 pixels of 16: no multiple of a patch
        size=0.0,
        shapes=lambda config: STRIPS,
        training=warmed,
        rates=STRIP_RATES,
    ),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Clip, Reference]]:
    made: dict[str, tuple[Clip, Reference]] = {}

    def get(name: str) -> tuple[Clip, Reference]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            reference = helpers.tiny_checkpoint(folder, **CLIPS[name])
            made[name] = clipbias.load(folder), reference
        return made[name]

    return get


def start(task: Task, size: float) -> Learnables:
    """Random learnables with the method's own constants."""
    if not size:
        return task.init(1)
    constants = {CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in task.shapes else {}
    return {**drawn(without_constants(task.shapes), size, seed=3), **constants}


@pytest.mark.parametrize("name", CASES)
def test_training_equals_numpy(name: str, clips: Callable[[str], tuple[Clip, Reference]]) -> None:
    case = CASES[name]
    clip, reference = clips(CASES[name].clip)
    task = Task(clip, name, CLASS_NAMES, template=case.template, **case.options)
    learnables = start(task, case.size)
    training = case.training()
    if case.shapes is not None:
        shapes = {leaf: value.shape for leaf, value in training.flat(learnables).items()}
        assert shapes == case.shapes(reference.config)

    def rule(values: Values, step: Step) -> tuple[Mapping[str, float], np.ndarray]:
        return case.rule(reference, task, values, step)

    check_training(task, learnables, rule, training, rates=case.rates, seed=SEED)
