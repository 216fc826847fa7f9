"""MMRL against its rule in NumPy, the two layouts of texts against each other, and what it predicts elsewhere."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Adaptation, Clip, encode_text
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.learnables import without_constants
from clipbias.tuning.transfer import transfer
from tests import helpers
from tests.reference import mmrl, optimizers
from tests.reference.methods import Reference
from tests.tuning import weights_common as common
from tests.tuning.conftest import TEXT, VISION

TEMPLATE = "a painting of a {}."
OPTIONS = {"tokens": 3, "blocks": 2, "space": 10, "weight": 2.0}


class FromTheStart(mmrl.Inserted):
    """The reference for towers of unequal depth: in the shallower one's last blocks, and those of their numbers."""

    def __init__(self, learnables: Learnables, tower: str, layers: int) -> None:
        super().__init__(learnables, tower, min(VISION[1], TEXT[1]))

    def enter(self, layer: int, x: np.ndarray) -> np.ndarray:
        return x if layer >= TEXT[1] else super().enter(layer, x)


@pytest.fixture(autouse=True)
def from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmrl, "Inserted", FromTheStart)


def bound(clip: Clip, names: tuple[str, ...] = common.CLASS_NAMES, **options) -> Task:
    return Task(clip, "mmrl", names, template=TEMPLATE, **OPTIONS | options)


def start(task: Task) -> Learnables:
    return {**common.drawn(without_constants(task.shapes), 1.0), CONSTANTS: task.init()[CONSTANTS]}


def of_numpy(reference: Reference, learnables: Learnables, images: np.ndarray, labels: np.ndarray) -> tuple:
    arguments = (reference, common.CLASS_NAMES, without_constants(learnables), images, labels)
    return mmrl.mmrl_losses(*arguments, template=TEMPLATE, weight=2.0)


def test_start(clip: Clip) -> None:
    found = bound(clip).init(2)
    for kernel in (found["text_kernel"], found["vision_kernel"]):
        np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.std(found["vision_readout"]) == pytest.approx(clip.config.vision.width**-0.5, rel=0.15)


def test_training_by_adamw_equals_numpy(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = bound(clip)
    learnables = start(task)
    shapes = mmrl.mmrl_shapes(reference.config, tokens=3, blocks=2, space=10)
    assert {name: leaf.shape for name, leaf in without_constants(learnables).items()} == shapes

    def rule(values: Learnables, step: common.Step) -> tuple:
        losses, z, z_r = of_numpy(reference, values, step.images, common.LABELS)
        assert min(losses.values()) > 2e-3
        return losses, 0.7 * z + 0.3 * z_r

    recipe = dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-1)
    training = common.Training(recipe, optimizers.AdamW(epsilon=1e-1, weight_decay=0.5))
    common.check_training(task, learnables, rule, training)

    # Classes that training did not see have the image's own logits `z` alone.
    few = bound(clip, common.CLASS_NAMES[:2])
    moved, kept = transfer(task, few, learnables), transfer(task, few, learnables, labels=[0, 1])
    assert float(moved[CONSTANTS]["alpha"]) == 1 and float(kept[CONSTANTS]["alpha"]) == pytest.approx(0.7)


@pytest.mark.parametrize(("blocks", "layers"), helpers.short([(1, 3), (2, 5), (3, 3)], (2, 5), (3, 3), several=True))
def test_both_layouts_of_texts_are_the_same(blocks: int, layers: int, tmp_path: Path) -> None:
    helpers.tiny_checkpoint(tmp_path, seed=5, vision=(16, 3, 2), text=(24, layers, 3), projection=20)
    clip = clipbias.load(tmp_path)
    task = bound(clip).with_memory(class_shards=2)
    tokens = common.drawn({"tokens": np.zeros((blocks, 3, 24), np.float32)}, 0.5)["tokens"]
    adaptation = Adaptation(text_tokens=tokens)

    @jax.jit
    def run(params):
        packed = task.classifier.encode_text(params, adaptation, task.text)
        return packed, encode_text(params, clip.config, task.tokens, adaptation)[0]

    packed, plain = run(clip.params)
    common.close(packed, np.asarray(plain), common.LOGITS)
