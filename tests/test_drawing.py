"""`clipbias.plot`: maps over pictures of every kind, with titles and words."""

from typing import Any

import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.streaming import Relevancy
from clipbias.report.overlay import heat_map

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 16, 3), dtype=np.uint8)


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


def test_pictures_and_maps_stand_side_by_side(clip: Clip) -> None:
    task = clipbias.Task(clip, "ivlp", ("cat", "dog"))
    rows = np.random.default_rng(1).random((2, 16 + 4), np.float32)
    maps = Relevancy(vision=rows, text=np.ones((2, task.tokens.ids.shape[1])), scores=np.zeros(2))
    figure = clipbias.plot(PIXELS, maps, task=task, targets=[1, 0])
    first, heat, second, _ = panels(figure)
    np.testing.assert_array_equal(first.images[0].get_array(), PIXELS[0, 2:18])
    np.testing.assert_array_equal(second.images[0].get_array(), PIXELS[1, 2:18])
    np.testing.assert_allclose(heat.images[1].get_array(), heat_map(rows[0], 16, 16))
    assert heat.get_title() == "dog"
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "dog" in written and "cat" in written and "SOS" in written
    # What was normalised is shown as it was.
    again = clipbias.plot(clip.preprocess(PIXELS), maps, task=task, titles=["a", "b"])
    np.testing.assert_array_equal(panels(again)[0].images[0].get_array(), PIXELS[0, 2:18])
    assert [axes.get_title() for axes in panels(again)][1] == "a"


def test_a_single_map_without_a_model_finds_its_square() -> None:
    figure = clipbias.plot(PIXELS[0], np.arange(11.0))
    picture, heat = panels(figure)
    assert picture.images[0].get_array().shape == (16, 16, 3)
    np.testing.assert_allclose(heat.images[1].get_array(), heat_map(np.arange(11.0), 16, 9))


@pytest.mark.parametrize(
    ("images", "maps", "options", "message"),
    [
        (PIXELS, np.ones(9), {}, r"2 pictures and maps of shape \[1, 9\]"),
        (PIXELS, np.ones((2, 9)), {"titles": ["a"]}, "2 maps and 1 titles"),
        (PIXELS, np.ones((2, 9)), {"targets": [1]}, "2 maps and 1 targets"),
        (np.zeros((2, 5), np.float32), np.ones((2, 9)), {}, r"the images have shape \[2, 5\]"),
    ],
)
def test_what_does_not_belong_together(images: Any, maps: Any, options: dict, message: str) -> None:
    with pytest.raises(ClipbiasError, match=message):
        clipbias.plot(images, maps, **options)
