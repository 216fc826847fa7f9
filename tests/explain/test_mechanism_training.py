"""The benchmark's trainings: one frozen model in a work folder and the images of each seed."""

import jax
import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from tools.mechanisms import models, train


def test_a_work_folder_has_one_frozen_model(tmp_path, clip):
    clip.save(tmp_path / "other", exact=True)
    for _ in range(2):
        train.choose_model(tmp_path / "work", str(tmp_path / "other"))
    (spec,) = models.table(["last_mlp"])[:1]
    stored = train.frozen_model(tmp_path / "work", spec)
    jax.tree.map(np.testing.assert_array_equal, stored.params, clip.params)
    with pytest.raises(ClipbiasError, match="another frozen one than demo; give another --workdir"):
        train.choose_model(tmp_path / "work", "demo")


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::UserWarning")  # two steps gain nothing
@pytest.mark.parametrize("family", ["map_8", "query_bias", "bias_by_position"])
def test_a_model_is_trained_on_the_images_of_its_seed(tmp_path, family):
    (spec, *_) = models.table([family])
    train.choose_model(tmp_path, "demo")
    few = train.training_images(train.dataset_of(tmp_path, spec), spec)
    assert len(few) == 160
    model = train.train_model(tmp_path, spec, steps=2)
    before = model.task.init(spec.seed)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), model.learnables, before)
    assert not all(jax.tree.leaves(same)) and train.adapter_path(tmp_path, spec).exists()
