"""Visual prompting: how strips start, the authors' schedule, and its images."""

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.transforms import Resizing
from clipbias.data.transforms import test_image as evaluated
from clipbias.tuning import Task, make_method
from tests.data.batches import train_batches
from tests.data.pictures import encoded, picture
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES


def test_strips_start_at_a_standard_normal_distribution_and_differ(clip: Clip) -> None:
    runs = [jax.device_get(Task(clip, "visual_prompting", CLASS_NAMES).init(seed)) for seed in range(20)]
    drawn = np.concatenate([run["vision_up"].ravel() for run in runs])
    assert abs(drawn.mean()) < 0.1 and drawn.std() == pytest.approx(1, abs=0.05)
    assert np.abs(runs[0]["vision_up"] - runs[0]["vision_down"]).max() > 0.1


def test_authors_warm_up_is_as_long_as_theirs_on_their_data() -> None:
    recipe = make_method("visual_prompting").recipe_for(common.SGD, None)
    rates = recipe.step_rates(50_000)
    assert len(rates) == 195_000 and rates.argmax() in (974, 975) and rates.max() == 40
    assert recipe.step_rates(64)[[4, -1]] == pytest.approx([40, 0], abs=1e-3)


def test_training_images_are_those_of_evaluation() -> None:
    split = Split(("a", "b", "c"), np.arange(3), lambda index: encoded(picture(index)))
    images = Images(split)
    resizing = Resizing(16)
    batch = next(train_batches(images, resizing=resizing, batch_size=len(split), seed=1, epochs=1, crop=None))
    expected = {evaluated(images.decoded(index), resizing).tobytes() for index in range(len(images))}
    assert {image.tobytes() for image in batch["images"]} == expected
