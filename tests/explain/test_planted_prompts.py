"""Planted prompts as models of the benchmark of explanations: their labels are exact, and a study names them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation
from clipbias.constants import ZERO_SHOT
from clipbias.explain.causal import Corner, Level, Stream, added_to_images, mix_images
from clipbias.explain.results import What, Where
from clipbias.explain.study import StudyOptions
from clipbias.tuning import Task
from clipbias.tuning.registry import resolve_method
from tools.mechanisms import labels, score, train
from tools.mechanisms.labels import FAMILIES, Spec
from tools.mechanisms.planted import CONFIG, prompts_of
from tools.mechanisms.train import dataset_of, frozen_model, logits_of, normalised, train_model

STREAMS = [*(Stream.corner(corner) for corner in Corner), Stream.at(Level.NOTHING), Stream.at(Level.OTHER)]
PROMPTS = {"vision_prompts": prompts_of(1)["vision_prompts"]}
PLANTED = [name for name, family in FAMILIES.items() if family.mechanism]


def planted_task(name):
    """A planted model as it is stored, and what it is trained and tested on."""
    spec = Spec(name, labels.PLANTED, outliers=False, seed=1, strength=1.0)
    family = FAMILIES[name]
    dataset = dataset_of(Path(), spec)
    return Task(frozen_model(Path(), spec), resolve_method(family.method, family.options), dataset), dataset


@pytest.fixture(scope="module")
def planted_numbers():
    """Of planted models: features in all corners, with nothing and with another image's values; and these values."""
    tuned = Adaptation(vision_prompts=PROMPTS["vision_prompts"])

    @jax.jit
    def numbers(params, images):
        mixed = mix_images(params, CONFIG, images, tuned, STREAMS, donors=images[None, ::-1]).streams
        return mixed, added_to_images(CONFIG, params, images, np.ones(len(images), bool), tuned)["slots"]

    def of(name):
        task, dataset = planted_task(name)
        return jax.device_get(numbers(task.clip.params, normalised(task.clip, dataset.split("train"))))

    return of


@pytest.mark.ci
@pytest.mark.parametrize("name", PLANTED)
def test_planted_prompts_do_what_their_labels_say(name, planted_numbers):
    family = FAMILIES[name]
    features, values = planted_numbers(name)
    reference, attention, tokens, tuned, nothing, other = features
    close = {"rtol": 0, "atol": 2e-3}  # a thousandth, as LayerNorm is
    if family.where is Where.ATTENTION:
        np.testing.assert_allclose(attention, tuned, **close)
        np.testing.assert_allclose(tokens, reference, **close)
    elif family.where is Where.NOT_ATTENTION:
        np.testing.assert_allclose(attention, reference, **close)
        np.testing.assert_allclose(tokens, tuned, **close)
    assert np.abs(tuned - reference).max() > 0.1
    spread = np.sqrt(values.squares / values.count[:, None, None]).max()
    if family.what is What.NOTHING:
        np.testing.assert_allclose(nothing, tuned, **close)
    elif family.what is What.SAME:
        np.testing.assert_allclose(other, tuned, **close)
        assert spread < 2e-3 < 0.1 < np.abs(values.mean).max() and np.abs(nothing - tuned).max() > 0.1
    elif family.what is What.DEPENDS:
        assert np.abs(values.mean).max() < 2e-3 < 0.1 < spread and np.abs(other - tuned).max() > 0.1


@pytest.mark.ci
@pytest.mark.parametrize("name", ["planted_none", "planted_attention"])
def test_planted_gains(name):
    """Other evidence that is as good gives no gain in all images together, and better evidence gives one."""
    task, dataset = planted_task(name)
    split = dataset.split("val")
    frozen_task = Task(task.clip, ZERO_SHOT, dataset)
    logits = logits_of(task, PROMPTS, split), logits_of(frozen_task, {}, split)
    tuned, frozen = (each.argmax(-1) == split.labels for each in logits)
    assert (tuned != frozen).mean() > 0.05
    assert abs(tuned.mean() - frozen.mean()) < 0.01 if name == "planted_none" else tuned.mean() > frozen.mean() + 0.1


@pytest.mark.long
@pytest.mark.parametrize("family", ["planted_constant", "planted_image"])
def test_planted_prompts_are_explained(family, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "PLANTED_IMAGES", {"train": 16, "val": 200, "test": 300})
    spec = Spec(family, labels.PLANTED, outliers=False, seed=1, strength=1.0)
    train_model(tmp_path, spec, steps=1)
    options = StudyOptions(replacement_forms=("kind",), replacement_steps=2)
    (scored_model,) = score.score(tmp_path, [spec], options).to_dict("records")
    assert scored_model["counts"] and scored_model["truth: what"] == FAMILIES[family].what.value
    assert scored_model["verdict: where"] == Where.NOT_ATTENTION.value
    assert scored_model["verdict: what"] == FAMILIES[family].what.value
    (other,) = score.score(tmp_path, [spec], options).to_dict("records")  # the study is read
    assert other == scored_model
