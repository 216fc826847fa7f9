"""Training of methods against their rules in NumPy: logits, terms of the loss, gradients and three steps of each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.tuning import Learnables, Task, make_method
from clipbias.tuning.methods.weight_tuning import BitFit, LayerNormTuning
from clipbias.tuning.prompts import imagenet_full
from tests.reference import inner_parts, methods, optimizers, prompts, prompts_plot, weight_tuning
from tests.reference.methods import Reference
from tests.tuning.weights_common import (
    CLASS_NAMES,
    LABELS,
    RATES,
    SGD,
    Step,
    Training,
    Values,
    added,
    check_training,
    named,
    pictures,
    start,
)

Terms = tuple[Mapping[str, float], np.ndarray]  # of the loss, and logits
Rule = Callable[[Values, Step], Terms]
# Two classes whose names are alike but for the last token.
OTHER_NAMES = ("yellow dog-fish", "yellow dog-fin", "o", "a_very_long_name: of a bird", "cat", "Photo of a photo", "7")
PAINTING = "a painting of a {}, a type of cat."
WITH_COMMA = "a type of cat, a photo of a {}."
PHRASES = ("a photo of a", "photo of the dog type", "of a cat")  # of as many tokens as words of the first, more, fewer


@dataclasses.dataclass(frozen=True)
class Case:
    """A training and NumPy's rule of it.

    Attributes:
      rule: of the model and the task.
      clip: of `tests/tuning/conftest.py`.
      options, template, names: of the task.
      shards: devices that share its classes.
      size: of the random learnables; the method's own where it is 0.
      shapes: of the learnables, where the reference says them.
      training: made anew for each test, since NumPy's optimiser keeps a state.
      rates: of the steps.
      method: its name, if it is not the case's.
    """

    rule: Callable[[Reference, Task], Rule]
    clip: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    template: str = "a photo of a {}."
    names: Sequence[str] = CLASS_NAMES
    shards: int = 1
    size: float = 0.4
    shapes: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]] | None = None
    training: Callable[[Reference], Training] = lambda reference: Training()
    rates: tuple[float, ...] = RATES
    method: Any = None


def of_losses(losses: Callable[..., Terms], **options: Any) -> Callable[[Reference, Task], Rule]:
    """Terms of the loss and logits."""
    return lambda reference, task: (
        lambda values, step: losses(reference, task.class_names, values, step.images, LABELS, **options)
    )


def of_transport(logits: Callable[..., np.ndarray], **options: Any) -> Callable[[Reference, Task], Rule]:
    """Gradients hold the plan of a step's start fixed."""

    def rule(reference: Reference, names: Sequence[str], values: Values, step: Step) -> Terms:
        return methods.entropy_of(logits(reference, names, values, step.images, point=step.start, **options), LABELS)

    return lambda reference, task: functools.partial(rule, reference, task.class_names)


def proda_rule(reference: Reference, task: Task) -> Rule:
    """Of the sets that the run's seed says."""

    def rule(values: Values, step: Step) -> Terms:
        sets = np.asarray(task.method.templates_in_training(jax.random.key(SEED), step.number)).tolist()
        return prompts.proda_losses(reference, CLASS_NAMES, values, step.images, LABELS, sets)

    return rule


def promptsrc_rule(reference: Reference, task: Task) -> Rule:
    images = pictures(reference.config["vision_config"]["image_size"])[1]
    teacher = prompts.promptsrc_teacher(reference, CLASS_NAMES, images, imagenet_full()[:60])
    return of_losses(prompts.promptsrc_losses, teacher=teacher)(reference, task)


def weights_losses(reference: Reference, names: Sequence[str], *arguments: Any) -> Terms:
    values, images, labels = arguments
    return methods.entropy_of(weight_tuning.weights_forward(reference, names, values, images).logits, labels)


class BitFitAndLayerNorm(BitFit):
    """What both methods tune. Each of them only says what that is, so that one training is both's."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        biases = super().init(rng, clip, class_names)
        norms = LayerNormTuning(outer=True).init(rng, clip, class_names)
        return {tower: merged(biases[tower], norms[tower]) for tower in biases}


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: merged(a[name], b[name]) for name in a.keys() & b.keys() if isinstance(a[name], dict)}
    return {**a, **b, **both}


def whole_weights(reference: Reference) -> Training:
    """AdamW draws whole weights towards zero, not their changes."""
    names = {*weight_tuning.bitfit_names(reference.config, qkv=True)}
    names |= {*weight_tuning.layer_norm_names(reference.config, outer=True)}
    return dataclasses.replace(
        by("adamw", 1e-3, 0.5)(reference),
        flat=named,
        frozen={name: np.asarray(reference.state[name], np.float64) for name in names},
        unseen={name for name in names if name.endswith("k_proj.bias")},  # softmax does not see the biases of keys
    )


def by(optimizer: str, epsilon: float, decay: float) -> Callable[[Reference], Training]:
    """Adam or AdamW with a decay of the size of a step, and an epsilon that keeps rounding out of the steps' signs."""
    recipe = dataclasses.replace(SGD, optimizer=optimizer, weight_decay=decay, epsilon=epsilon)
    kind = {"adam": optimizers.Adam, "adamw": optimizers.AdamW}[optimizer]
    return lambda reference: Training(recipe, kind(epsilon=epsilon, weight_decay=decay))


def scaled(reference: Reference) -> Training:
    """Steps are given the gradient over MMA's factor, and decay as it is: as large a part of a step."""
    recipe = dataclasses.replace(SGD, weight_decay=10.0)
    optimizer = optimizers.SGD(weight_decay=10.0)
    return Training(recipe, optimizer, flat=inner_parts.flatten, times=1 / 0.05)


def projected(reference: Reference) -> Training:
    """ProGrad's combination of the gradients of its two terms."""
    return Training(combine=lambda gradients: prompts.project(*gradients, strength=0.8))


def warmed(reference: Reference) -> Training:
    """Visual prompting's own schedule."""
    recipe = make_method("visual_prompting").recipe_for(SGD, 16)
    recipe = dataclasses.replace(recipe, learning_rate=0.5, epochs=6, warmup_epochs=2)
    np.testing.assert_allclose(recipe.step_rates(len(LABELS)), STRIP_RATES, rtol=1e-12)
    return Training(recipe, optimizers.SGD(weight_decay=0.0))


SEED = 7
STRIP_RATES = prompts.linear_then_cosine_rates(0.5, 2, 6)
STRIPS = {
    **dict.fromkeys(("vision_up", "vision_down"), (3, 16, 3)),
    **dict.fromkeys(("vision_left", "vision_right"), (10, 3, 3)),
}


# Methods of the paper, on a text tower that is wider, deeper and of more heads than the vision tower; those with few
# learnables on a tiny one, by differences in every coordinate.
def of_paper(
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    template: str = "a photo of a {}.",
    shards: int = 1,
    in_full: bool = False,
    **theirs: Any,
) -> Case:
    return Case(
        of_losses(methods.losses, method=method, template=template, **theirs),
        "smallest" if in_full else "wide_text",
        options or {},
        template=template,
        names=OTHER_NAMES,
        shards=shards,
        training=lambda reference: Training(combine=added if in_full else None),
    )


MIDDLE = {"tokens": 5, "class_specific": True, "words": "", "position": "middle"}
DEPTHS = {"text_tokens": 3, "vision_tokens": 2, "text_depth": 3, "vision_depth": 2}
PAPER = {
    "coop": of_paper("coop", MIDDLE, shards=3, worded=False, position="middle"),
    "vpt": of_paper("vpt", {"tokens": 3}),
    "ivlp": of_paper("ivlp", DEPTHS, shards=2),
    "maple": of_paper("maple", {"tokens": 2, "depth": 2}, shards=3),
    "taskres": of_paper("taskres", {"alpha": 2.0}, template="a {} texture.", in_full=True, alpha=2.0),
    "bias": of_paper("bias", shards=2, in_full=True),
    "bias_by_kind": of_paper("bias_by_kind", shards=2),
}
CASES = PAPER | {
    "cocoop": Case(of_losses(prompts.cocoop_losses), "long"),
    "plot": Case(of_transport(prompts_plot.plot_logits, pooled=True), "long", {"pooled": True, "tokens": 5, "sets": 3}),
    "plot_plus_plus": Case(of_transport(prompts_plot.plus_logits, phrases=PHRASES), "long", {"phrases": PHRASES}),
    "proda": Case(proda_rule, "long", {"tokens": 6, "sets": 8, "sets_per_step": 2}),
    "upl": Case(of_losses(prompts.upl_losses), "long", {"tokens": 5, "sets": 3}),
    "kgcoop": Case(of_losses(prompts.kgcoop_losses, template=PAINTING), "long", template=PAINTING),
    "prograd": Case(
        of_losses(prompts.prograd_losses, template=WITH_COMMA, temperature=2.0),
        "long",
        {"tokens": 9, "strength": 0.8, "temperature": 2.0},
        template=WITH_COMMA,
        training=projected,
        method=lambda options: make_method("prograd", template=WITH_COMMA, **options),
    ),
    "promptsrc": Case(promptsrc_rule, "long", {"depth": 2}),
    "bitfit_and_layer_norm": Case(
        of_losses(weights_losses),
        "other",
        {"qkv": True},
        size=0.1,
        training=whole_weights,
        method=lambda options: BitFitAndLayerNorm(**options),
    ),
    "mma": Case(
        of_losses(inner_parts.mma_losses, factor=0.05),
        "other",
        {"blocks": 2, "width": 6, "factor": 0.05},  # large enough that float32 sees what is added to float32
        template="a {} of another dataset.",
        shapes=lambda config: inner_parts.mma_shapes(config, blocks=2, width=6),
        training=scaled,
        rates=(2e-4, 3e-4, 1e-4),
    ),
    "mmrl": Case(
        of_losses(inner_parts.mmrl_losses, template="a painting of a {}.", weight=2.0),
        "other",
        {"tokens": 3, "blocks": 2, "space": 10, "weight": 2.0},
        template="a painting of a {}.",
        size=1.0,
        shapes=lambda config: inner_parts.mmrl_shapes(config, tokens=3, blocks=2, space=10),
        training=by("adamw", 1e-1, 0.5),
    ),
    "tcp": Case(
        of_losses(inner_parts.tcp_losses, template=PAINTING, suffix=", a type of cat.", block=2),
        "deep_text",
        {"block": 2},
        template=PAINTING,
        size=0.3,
        training=by("adam", 1e-2, 0.1),
    ),
    "visual_prompting": Case(
        of_losses(prompts.framed_losses),
        "pixels",
        {"width": 40},  # 3 pixels of 16: no multiple of a patch
        size=0.0,
        shapes=lambda config: STRIPS,
        training=warmed,
        rates=STRIP_RATES,
    ),
}
MASKED = ("kgcoop", "prograd", "promptsrc")
OTHERS = [pytest.param(name, marks=pytest.mark.ci) for name in CASES if name not in PAPER]


@pytest.mark.parametrize("name", [*PAPER, *OTHERS])
def test_training_equals_numpy(name, clips):
    case = CASES[name]
    clip, reference = clips(case.clip)
    method, options = (name, case.options) if case.method is None else (case.method(case.options), {})
    task = Task(clip, method, case.names, template=case.template, **options).with_memory(class_shards=case.shards)
    if name in ("plot", "upl"):
        assert task.text.shared == 6  # the start and each set's context
    learnables = start(task, case.size, seed=3) if case.size else task.init(1)
    training = case.training(reference)
    assert not training.frozen or training.flat(learnables).keys() == training.frozen.keys()
    if case.shapes is not None:
        shapes = {leaf: value.shape for leaf, value in training.flat(learnables).items()}
        assert shapes == case.shapes(reference.config)
    run = check_training(task, learnables, case.rule(reference, task), training, rates=case.rates, seed=SEED)
    if name in MASKED:  # what is masked does not count
        images = run.batch["images"][0]
        mask = np.array([True, True, False, False])
        other = np.concatenate([images[:2], 255 - images[2:]])
        alone, two = (run.taken(run.first, run.step(run.first, 0.03, images=x, mask=mask)[0]) for x in (images, other))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), alone, two)
        whole = run.taken(run.first, run.step(run.first, 0.03)[0])
        assert np.abs(alone["text_context"] - whole["text_context"]).max() > 1e-3
