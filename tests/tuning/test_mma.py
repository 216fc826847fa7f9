"""MMA against its rule in NumPy, and the two layouts of texts against each other."""

import dataclasses

import jax
import numpy as np
import pytest

from clipbias.clip import Clip, encode_image, encode_text
from clipbias.tuning import Task, make_method
from tests import helpers
from tests.reference import inner_parts, mma, optimizers
from tests.reference.methods import Reference, task_logits
from tests.tuning import weights_common as common
from tests.tuning.conftest import TEXT, VISION

# Large enough that float32 sees what is added to float32.
OPTIONS = {"blocks": 2, "width": 6, "factor": 0.05}


class FromTheStart(mma.Adapters):
    """The reference for towers of unequal depth: beside the shallower one's last blocks, and those of their numbers."""

    def __init__(self, learnables: dict, tower: str, layers: int, factor: float) -> None:
        super().__init__(learnables, tower, min(VISION[1], TEXT[1]), factor)

    def forward(self, layer: int, normed: np.ndarray) -> np.ndarray:
        return np.zeros_like(normed) if layer >= TEXT[1] else super().forward(layer, normed)


@pytest.fixture(autouse=True)
def from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mma, "Adapters", FromTheStart)


def start(task: Task) -> dict:
    return common.drawn(task.shapes, 0.4)


def test_start(clip: Clip) -> None:
    found = Task(clip, "mma", ("cat", "dog"), blocks=2, width=200).init(3)
    for part, outputs in ((found["vision"]["up"], 24), (found["text"]["down"], 200), (found["shared"], 200)):
        assert np.std(part["kernel"]) == pytest.approx((2 / outputs) ** 0.5, rel=0.05) and not part["bias"].any()


def test_steps_are_given_the_gradient_over_the_factor_and_decay_as_it_is(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = Task(clip, "mma", common.CLASS_NAMES, template="a {} of another dataset.", **OPTIONS)
    shapes = mma.mma_shapes(reference.config, blocks=2, width=6)
    assert {name: leaf.shape for name, leaf in inner_parts.flatten(start(task)).items()} == shapes

    def rule(values: common.Values, step: common.Step) -> tuple:
        losses, logits = mma.mma_losses(reference, common.CLASS_NAMES, values, step.images, common.LABELS, factor=0.05)
        if values is step.start:
            plain = task_logits(reference, "zero_shot", common.CLASS_NAMES, {}, step.images)
            assert np.abs(plain - logits).max() > 0.01 * np.abs(logits).max()
        return losses, logits

    training = common.Training(
        recipe=dataclasses.replace(common.SGD, weight_decay=10.0),  # as large a part of a step as the gradient
        optimizer=optimizers.SGD(momentum=0.9, weight_decay=10.0),
        flat=inner_parts.flatten,
        times=1 / 0.05,
    )
    common.check_training(task, start(task), rule, training, rates=(2e-4, 3e-4, 1e-4))


def test_every_path_through_the_towers_is_the_same(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = Task(clip, "mma", common.CLASS_NAMES, **OPTIONS)
    adaptation = task.method.adapt(start(task))
    images = helpers.random_images(reference.config, 2)

    @jax.jit
    def run(params):
        packed = task.classifier.encode_text(params, adaptation, task.text)
        fused, _ = encode_text(params, clip.config, task.tokens, adaptation)
        shown, _ = encode_text(params, clip.config, task.tokens, adaptation, observe=lambda view: view.index)
        image = encode_image(params, clip.config, images, adaptation)[0]
        seen, _ = encode_image(params, clip.config, images, adaptation, observe=lambda view: view.index)
        patches = encode_image(params, clip.config, images, adaptation, patches=True)[0][:, 0]
        return (packed, fused, shown), (image, seen, patches)

    for first, *others in run(clip.params):
        for one in others:
            common.close(one, first, common.LOGITS)


def test_the_authors_batch_of_imagenet() -> None:
    assert make_method("mma").options_for("imagenet", 16) == {"batch_size": 128}
