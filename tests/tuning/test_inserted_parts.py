"""MMA, MMRL and TCP: what stands in the blocks of a tower, on every path through it, and for other classes."""

from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip, encode_text
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.adapter import transfer
from clipbias.tuning.method import without_constants
from tests.reference import tcp
from tests.tuning import weights_common as common

pytestmark = pytest.mark.ci

TEMPLATE = "a painting of a {}, a type of cat."
SUFFIX = ", a type of cat."
OPTIONS = {
    "mma": {"blocks": 2, "width": 6, "factor": 0.05},
    "mmrl": {"tokens": 3, "blocks": 2, "space": 10},
    "tcp": {"block": 2},
}


def bound(clip: Clip, method: str, names: tuple[str, ...] = common.CLASS_NAMES, **options: Any) -> Task:
    return Task(clip, method, names, template=TEMPLATE, **OPTIONS[method] | options)


def start(task: Task) -> Learnables:
    learned = common.drawn(without_constants(task.shapes), 0.3)
    return {**learned, CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in task.shapes else learned


def test_kernels_start_as_the_authors_do(clip):
    learnables = Task(clip, "mma", ("cat", "dog"), blocks=2, width=200).init(3)
    for part, outputs in (
        (learnables["vision"]["up"], 24),
        (learnables["text"]["down"], 200),
        (learnables["shared"], 200),
    ):
        assert np.std(part["kernel"]) == pytest.approx((2 / outputs) ** 0.5, rel=0.05) and not part["bias"].any()
    learnables = bound(clip, "mmrl").init(2)
    for kernel in (learnables["text_kernel"], learnables["vision_kernel"]):
        np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.std(learnables["vision_readout"]) == pytest.approx(clip.config.vision.width**-0.5, rel=0.15)


def test_mmrl_predicts_by_the_image_alone_for_other_classes(other):
    """The tokens' logits are of classes that training saw."""
    task, few = (bound(other[0], "mmrl", names) for names in (common.CLASS_NAMES, common.CLASS_NAMES[:2]))
    moved, same = transfer(task, few, start(task)), transfer(task, few, start(task), labels=[0, 1])
    assert float(moved[CONSTANTS]["alpha"]) == 1 and float(same[CONSTANTS]["alpha"]) == pytest.approx(0.7)


def test_a_block_that_a_shallower_tower_lacks_is_its_last(deep_text):
    clip, reference = deep_text
    task = bound(clip, "tcp", block=8)
    images = common.pictures(clip.config.vision.image_size)[1]
    learnables = start(task)
    logits = jax.jit(task.logits)(clip.params, learnables, images.astype(np.float32))
    options = {"template": TEMPLATE, "suffix": SUFFIX, "block": 3}
    arguments = (reference, common.CLASS_NAMES, without_constants(learnables), images, common.LABELS)
    common.close(logits, tcp.tcp_losses(*arguments, **options)[1], common.LOGITS)


def test_other_classes_have_their_own_features_and_the_same_network(deep_text):
    clip, _ = deep_text
    source, target = bound(clip, "tcp"), bound(clip, "tcp", ("bird dog", "a cat"))
    learnables = start(source)
    moved = transfer(source, target, learnables)
    np.testing.assert_array_equal(moved[CONSTANTS]["classes"], target.init()[CONSTANTS]["classes"])
    runs = transfer(source, target, jax.tree.map(lambda leaf: np.stack([leaf] * 2), learnables), axis=1)
    np.testing.assert_array_equal(runs[CONSTANTS]["classes"][1], moved[CONSTANTS]["classes"])
    np.testing.assert_array_equal(runs["text_context"][1], learnables["text_context"])


@pytest.mark.parametrize(("blocks", "layers"), [(2, 5), (3, 3)])
def test_both_layouts_of_texts_are_the_same(blocks, layers, tiny):
    """Tokens that enter at the first block, or behind more blocks than they have."""
    clip, _ = tiny(seed=5, vision=(16, 3, 2), text=(24, layers, 3), projection=20)
    task = bound(clip, "mmrl").with_memory(class_shards=2)
    adaptation = Adaptation(text_tokens=common.drawn(np.zeros((blocks, 3, 24), np.float32), 0.5))
    packed = jax.jit(task.classifier.encode_text)(clip.params, adaptation, task.text)
    plain, _ = jax.jit(encode_text, static_argnums=1)(clip.params, clip.config, task.tokens, adaptation)
    common.close(packed, np.asarray(plain), common.LOGITS)
