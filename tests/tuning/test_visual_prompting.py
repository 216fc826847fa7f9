"""Visual prompting against NumPy: logits, loss, gradients, steps and schedule; and what its images are."""

import dataclasses

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.transforms import test_image as evaluated
from clipbias.tuning import Task, make_method
from tests import helpers
from tests.data.batches import train_batches
from tests.data.pictures import encoded, picture
from tests.reference import methods, optimizers, visual_prompting
from tests.reference.numpy_clip import cross_entropy
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES, LABELS


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Clip, methods.Reference]:
    folder = tmp_path_factory.mktemp("visual")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 2, 2), image_size=16)
    return clipbias.load(folder), reference


def test_it_equals_numpy(pair) -> None:
    clip, reference = pair
    task = Task(clip, "visual_prompting", CLASS_NAMES, width=40)  # 3 pixels of 16: no multiple of a patch
    start = task.init(1)
    assert {name: leaf.shape for name, leaf in start.items()} == {
        **dict.fromkeys(("vision_up", "vision_down"), (3, 16, 3)),
        **dict.fromkeys(("vision_left", "vision_right"), (10, 3, 3)),
    }

    def rule(values, step):
        scores = visual_prompting.logits(reference, CLASS_NAMES, values, step.images)
        return {"cross_entropy": cross_entropy(scores, LABELS)}, scores

    recipe = dataclasses.replace(task.method.recipe_for(common.SGD, 16), learning_rate=0.5, epochs=6, warmup_epochs=2)
    rates = recipe.step_rates(len(LABELS))
    np.testing.assert_allclose(rates, visual_prompting.rates(0.5, 2, 6), rtol=1e-12)
    training = common.Training(recipe, optimizers.SGD(momentum=0.9, weight_decay=0.0))
    common.check_training(task, start, rule, training, rates=rates)


def test_strips_start_at_a_standard_normal_distribution_and_differ(pair) -> None:
    runs = [jax.device_get(Task(pair[0], "visual_prompting", CLASS_NAMES).init(seed)) for seed in range(20)]
    drawn = np.concatenate([run["vision_up"].ravel() for run in runs])
    assert abs(drawn.mean()) < 0.1 and drawn.std() == pytest.approx(1, abs=0.05)
    assert np.abs(runs[0]["vision_up"] - runs[0]["vision_down"]).max() > 0.1


def test_authors_warm_up_is_as_long_as_theirs_on_their_data() -> None:
    recipe = make_method("visual_prompting").recipe_for(common.SGD, 0)
    rates = recipe.step_rates(50_000)
    assert len(rates) == 195_000 and rates.argmax() in (974, 975) and rates.max() == 40
    assert recipe.step_rates(64)[[4, -1]] == pytest.approx([40, 0], abs=1e-3)


def test_training_images_are_those_of_evaluation() -> None:
    split = Split(("a", "b", "c"), np.arange(3), lambda index: encoded(picture(index)))
    images = Images(split)
    batch = next(train_batches(images, image_size=16, batch_size=len(split), seed=1, epochs=1, crop=None))
    expected = {evaluated(images.decoded(index), 16).tobytes() for index in range(len(images))}
    assert {image.tobytes() for image in batch["images"]} == expected
