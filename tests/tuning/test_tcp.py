"""TCP against its rule in NumPy, the layouts of texts against each other, and other classes."""

import dataclasses

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip, encode_text
from clipbias.tuning import CONSTANTS, Learnables, Task
from clipbias.tuning.learnables import without_constants
from clipbias.tuning.transfer import transfer
from tests import helpers
from tests.reference import optimizers, tcp
from tests.reference.methods import Reference
from tests.tuning import weights_common as common

TEMPLATE, SUFFIX = "a painting of a {}, a type of cat.", ", a type of cat."
BLOCK = 2


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Reference]:
    folder = tmp_path_factory.mktemp("other")
    sizes = {"vision": (16, 2, 2), "text": (24, 4, 3), "projection": 20, "context_length": 40}
    reference = helpers.tiny_checkpoint(folder, seed=5, **sizes)
    return clipbias.load(folder), reference


def bound(clip: Clip, names: tuple[str, ...] = common.CLASS_NAMES, **options) -> Task:
    return Task(clip, "tcp", names, template=TEMPLATE, **{"block": BLOCK} | options)


def start(task: Task) -> Learnables:
    learned = common.drawn(without_constants(task.shapes), 0.3)
    return {**learned, CONSTANTS: task.init()[CONSTANTS]}


def of_numpy(reference: Reference, learnables: Learnables, images: np.ndarray, labels: np.ndarray, **options):
    arguments = (reference, common.CLASS_NAMES, without_constants(learnables), images, labels)
    return tcp.tcp_losses(*arguments, **{"template": TEMPLATE, "suffix": SUFFIX, "block": BLOCK} | options)


def test_training_by_adam_equals_numpy(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = bound(clip)

    def rule(values: Learnables, step: common.Step) -> tuple:
        losses, logits = of_numpy(reference, values, step.images, common.LABELS)
        assert losses["distillation"] > 0.1
        return losses, logits

    recipe = dataclasses.replace(common.SGD, optimizer="adam", weight_decay=0.1, epsilon=1e-2)
    training = common.Training(recipe, optimizers.Adam(epsilon=1e-2, weight_decay=0.1))
    common.check_training(task, start(task), rule, training)


def test_a_block_that_a_shallower_tower_lacks_is_its_last(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = bound(clip, block=8)
    images = common.pictures(clip.config.vision.image_size)[1]
    logits = jax.jit(task.logits)(clip.params, start(task), images.astype(np.float32))
    common.close(logits, of_numpy(reference, start(task), images, common.LABELS, block=3)[1], common.LOGITS)


def test_every_path_through_the_text_tower_is_the_same(other: tuple[Clip, Reference]) -> None:
    """Also where something is learned in the blocks behind the one with prompts."""
    clip, _ = other
    task = bound(clip).with_memory(class_shards=2)
    bias = common.drawn(np.zeros((4, 24), np.float32), 0.5)
    adaptation = dataclasses.replace(task.method.adapt(start(task)), text_bias=bias)

    @jax.jit
    def run(params):
        packed = task.classifier.encode_text(params, adaptation, task.text)
        fused, _ = encode_text(params, clip.config, task.tokens, adaptation)
        shown, _ = encode_text(params, clip.config, task.tokens, adaptation, observe=lambda view: view.index)
        return packed, fused, shown

    first, *others = run(clip.params)
    for one in others:
        common.close(one, np.asarray(first), common.LOGITS)


def test_other_classes_have_their_own_features_and_the_same_network(other: tuple[Clip, Reference]) -> None:
    clip, _ = other
    source, target = bound(clip), bound(clip, ("bird dog", "a cat"))
    learnables = start(source)
    moved = transfer(source, target, learnables)
    np.testing.assert_array_equal(moved[CONSTANTS]["classes"], target.init()[CONSTANTS]["classes"])
    runs = transfer(source, target, jax.tree.map(lambda leaf: np.stack([leaf] * 2), learnables), axis=1)
    np.testing.assert_array_equal(runs[CONSTANTS]["classes"][1], moved[CONSTANTS]["classes"])
    np.testing.assert_array_equal(runs["text_context"][1], learnables["text_context"])


def test_the_suffix_ends_the_texts(other: tuple[Clip, Reference]) -> None:
    clip, _ = other
    assert bound(clip, ("cat",)).texts == ("X X X X cat, a type of cat.",)
    assert bound(clip, ("cat",), suffix=".").texts == ("X X X X cat.",)
