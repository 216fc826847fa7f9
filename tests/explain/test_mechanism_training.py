"""The benchmark's trainings: one frozen model in a work folder, and a method trained again on the same images."""

import dataclasses

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
@pytest.mark.parametrize("family", ["map_8", "head"])
def test_a_model_is_trained_again_on_the_same_images_from_another_start(tmp_path, family):
    (spec, *_) = models.table([family])
    train.choose_model(tmp_path, "demo")
    dataset = train.dataset_of(tmp_path, spec)
    few = train.training_images(dataset, spec)
    again = train.training_images(train.drawn(dataset, spec), dataclasses.replace(spec, seed=spec.seed + train.AGAIN))
    assert len(few) == 160 < len(dataset.split("train"))
    assert set(again.keys) == set(few.keys) and again.keys != few.keys
    first, other = (train.train_model(tmp_path, spec, steps=2, again=which) for which in (False, True))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), first.learnables, other.learnables)
    assert not all(jax.tree.leaves(same))
    assert {path.parent.name for path in tmp_path.glob("*/*.safetensors")} == {"models", "again"}
