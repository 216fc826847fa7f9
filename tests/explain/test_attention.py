import functools

import jax
import numpy as np
import pytest

from clipbias.clip import VisionConfig
from clipbias.explain.attention import (
    distance_and_entropy,
    entropy,
    text_kinds,
)
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES

VIT_B_16 = VisionConfig(width=4, layers=1, heads=1, mlp_width=4, image_size=224, patch_size=16)


def test_uniform_attention_has_the_known_values():
    run = jax.jit(functools.partial(distance_and_entropy, config=VIT_B_16))
    with_cls = run(np.full((1, 1, 197, 197), 1 / 197, np.float32))
    assert float(with_cls["distance"][0, 0]) == pytest.approx(115.901, abs=5e-4)
    assert float(with_cls["entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    assert float(with_cls["cls_entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    patches_alone = np.zeros((1, 1, 197, 197), np.float32)
    patches_alone[..., 1:] = 1 / 196
    assert float(run(patches_alone)["distance"][0, 0]) == pytest.approx(116.492, abs=5e-4)


def test_entropy_of_certainty_is_zero_and_differentiable():
    value, slope = jax.jit(jax.value_and_grad(entropy))(np.array([0.0, 1.0, 0.0], np.float32))
    assert float(value) == 0 and np.isfinite(slope).all()


def test_kinds_of_an_ensemble(clip):
    task = Task(clip, "zero_shot", CLASS_NAMES, templates=("a {}.", "a photo of a {}."))
    assert text_kinds(task).shape == (6, task.tokens.ids.shape[1])
