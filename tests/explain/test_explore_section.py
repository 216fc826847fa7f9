"""Which images a reader explores, and how few bytes their maps take."""

import numpy as np
import pytest

from clipbias.explain import pictures
from clipbias.explain.pictures import bytes_per_image, choose_images, compute_explore, quantise
from clipbias.explain.relevancy import Relevancy
from clipbias.explain.results import Predictions
from clipbias.explain.study import StudyOptions
from tests.explain.test_study import COUNT, knows, make


def predictions(zero_shot, vpt):
    """Of images of classes in turn; 0 is right, 1 wrong, -1 not read."""
    labels = np.arange(len(zero_shot)) % 3
    models = {
        name: np.where(np.array(wrong) < 0, -1, (labels + np.array(wrong)) % 3)
        for name, wrong in {"zero_shot": zero_shot, "vpt": vpt}.items()
    }
    return Predictions(labels, models)


def test_kinds_of_change_take_turns(clip, tmp_path):
    study = make(clip, tmp_path)
    predicted = predictions([0, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1])
    assert predicted.changes("vpt").tolist() == [2, 2, 2, 2, 0, 1, 3]
    # The first of each kind, then the second of the only one that has more, of another class.
    assert choose_images(study, predicted, 4).tolist() == [0, 4, 5, 6]
    assert choose_images(study, predicted, 5).tolist() == [0, 1, 4, 5, 6]
    assert choose_images(study, predicted, 99).tolist() == list(range(COUNT))
    predicted = predictions([0, 0, 0, -1, 1, 0, 1], [0, 0, 0, 0, 0, -1, 1])
    assert choose_images(study, predicted, 99).tolist() == [0, 1, 2, 4, 6]
    nothing = predictions([0] * COUNT, [0] * COUNT)
    assert choose_images(study, nothing, 3).tolist() == [0, 1, 2]  # of each class one
    few = make(clip, tmp_path, options=StudyOptions(image_limit=3))  # the images of the causal test
    assert choose_images(few, nothing, 99).tolist() == [0, 3, 6]


@pytest.mark.ci
def test_fewer_images_where_a_page_would_grow_too_large(clip, tmp_path, monkeypatch):
    study = make(clip, tmp_path)

    def maps(study, model, images, targets):
        seen = np.ones((len(images), study.clip.config.vision.patches + model.prompts[0]), np.float32)
        return Relevancy(seen, np.ones((len(images), int(np.max(model.task.tokens.end))), np.float32), targets)

    def layers(study, model, images):
        return {"attention": np.ones((len(images), 3, study.clip.config.vision.patches + model.prompts[0]), np.float32)}

    monkeypatch.setattr(pictures, "relevancy_maps", maps)
    monkeypatch.setattr(pictures, "layer_maps", layers)
    monkeypatch.setattr(pictures, "LARGEST_BYTES", 2 * bytes_per_image(study) + 1)
    explore = study.run_section(compute_explore(knows(study, predictions([0] * COUNT, [1] * COUNT))))
    assert len(explore.images) == len(explore.names) == 2
    assert explore.pairs.tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]


@pytest.mark.parametrize("low", [False, True])
def test_steps(low):
    values = np.random.default_rng(0).lognormal(0, 2, (3, 4, 50))
    values[0, 0] = 0
    steps, scale, *lowest = quantise(values, low=low)
    again = steps * scale[..., None] / 255 + (lowest[0][..., None] if low else 0)
    assert (np.abs(again - values) <= scale[..., None] * 0.50001 / 255 + 1e-6).all() and not steps[0, 0].any()
