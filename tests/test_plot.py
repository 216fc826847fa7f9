"""`TunedModel.plot`: maps over pictures of every kind, with titles and words."""

from typing import Any

import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.report.overlay import heat_map

pytestmark = pytest.mark.ci

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 16, 3), dtype=np.uint8)


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


@pytest.fixture(scope="module")
def tuned(clip: Clip) -> clipbias.TunedModel:
    task = clipbias.Task(clip, "ivlp", ("cat", "dog"))
    return clipbias.TunedModel(task, task.init())


def test_pictures_and_maps_stand_side_by_side(clip, tuned):
    images = clip.preprocess(PIXELS)
    maps = clipbias.relevancy(tuned.task, clip.params, tuned.learnables, images, [1, 0])
    figure = tuned.plot(PIXELS, ["dog", "cat"])
    first, heat, second, _ = panels(figure)
    np.testing.assert_array_equal(first.images[0].get_array(), PIXELS[0, 2:18])
    np.testing.assert_array_equal(second.images[0].get_array(), PIXELS[1, 2:18])
    np.testing.assert_allclose(heat.images[1].get_array(), heat_map(np.asarray(maps.vision)[0], 16, 16), atol=1e-4)
    assert heat.get_title() == "dog"
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "dog" in written and "cat" in written and "SOS" in written
    # Normalised pictures are drawn as they were, and other maps in the place of relevancy.
    rows = np.random.default_rng(1).random((2, 16 + 4), np.float32)
    again = panels(tuned.plot(images, titles=["a", "b"], maps=rows))
    np.testing.assert_array_equal(again[0].images[0].get_array(), PIXELS[0, 2:18])
    np.testing.assert_allclose(again[3].images[1].get_array(), heat_map(rows[1], 16, 16))
    assert again[1].get_title() == "a"
    likely = tuned.plot(PIXELS)
    assert [panels(likely)[place].get_title() for place in (1, 3)] == tuned.predict(PIXELS).classes
    single = tuned.plot(PIXELS[0], maps=rows[:1], targets=[1])
    np.testing.assert_array_equal(panels(single)[0].images[0].get_array(), PIXELS[0, 2:18])
    # A notebook shows it.
    assert single._repr_png_().startswith(b"\x89PNG")
