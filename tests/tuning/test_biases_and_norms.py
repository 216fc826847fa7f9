"""BitFit and LayerNorm tuning against their rules in NumPy, and against bias tuning, which is a part of BitFit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.tuning import Learnables
from clipbias.tuning.methods.bitfit import BitFit
from clipbias.tuning.methods.layer_norm import LayerNormTuning
from tests.reference import optimizers, weight_tuning
from tests.reference.methods import Reference
from tests.reference.numpy_clip import cross_entropy
from tests.tuning import weights_common as common


@pytest.mark.parametrize(
    ("method", "options", "names"),
    [
        ("bitfit", {}, weight_tuning.bitfit_names),
        ("bitfit", {"qkv": True}, weight_tuning.bitfit_names),
        ("layer_norm", {}, weight_tuning.layer_norm_names),
        ("layer_norm", {"outer": True}, weight_tuning.layer_norm_names),
    ],
)
def test_what_is_tuned(method: str, options: dict, names: Any, other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    learnables = clipbias.Task(clip, method, common.CLASS_NAMES, **options).init()
    assert sorted(common.named(learnables)) == sorted(names(reference.config, **options))
    assert all(not leaf.any() for leaf in jax.tree.leaves(learnables))


class BitFitAndLayerNorm(BitFit):
    """What both methods tune. Each of them only says what that is, so that one training is both's."""

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        biases = super().init(rng, clip, class_names)
        norms = LayerNormTuning(outer=True).init(rng, clip, class_names)
        return {tower: merged(biases[tower], norms[tower]) for tower in biases}


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: merged(a[name], b[name]) for name in a.keys() & b.keys() if isinstance(a[name], dict)}
    return {**a, **b, **both}


@pytest.mark.ci
def test_training_by_adamw_equals_numpy(other: tuple[Clip, Reference]) -> None:
    """AdamW draws whole weights towards zero, not their changes."""
    clip, reference = other
    task = clipbias.Task(clip, BitFitAndLayerNorm(qkv=True), common.CLASS_NAMES)
    start = common.drawn(task.shapes, 0.1)
    frozen = {key: np.asarray(reference.state[key], np.float64) for key in common.named(start)}

    def rule(values: common.Values, step: common.Step) -> tuple:
        logits = weight_tuning.weights_forward(reference, common.CLASS_NAMES, values, step.images).logits
        return {"cross_entropy": cross_entropy(logits, common.LABELS)}, logits

    # A decay of the size of a step, and an epsilon that keeps rounding out of the steps' signs.
    training = common.Training(
        recipe=dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-3),
        optimizer=optimizers.AdamW(epsilon=1e-3, weight_decay=0.5),
        flat=common.named,
        frozen=frozen,
        unseen={key for key in frozen if key.endswith("k_proj.bias")},  # softmax does not see the biases of keys
    )
    common.check_training(task, start, rule, training)


def test_bitfit_of_the_mlps_outputs_is_bias_tuning(other: tuple[Clip, Reference]) -> None:
    """It changes the same biases, as another test's reference has it, and decays these changes alone."""
    clip, _ = other
    bias = clipbias.Task(clip, "bias", common.CLASS_NAMES)
    part = clipbias.Task(clip, "bitfit", common.CLASS_NAMES, only=("fc2",), decay="changes")
    same = {
        f"{tower}_weights": {"layers": {"fc2": {"bias": bias.shapes[f"{tower}_bias"]}}} for tower in ("vision", "text")
    }
    assert jax.tree.map(np.shape, part.init()) == jax.tree.map(np.shape, same)
    start = part.init()
    assert part.method.decayed_weights(start, clip.params) is start
