"""Heat maps, prompts' share and coloured text."""

import numpy as np
import pytest

from clipbias.report import style
from clipbias.report.overlay import Overlay, heat_map, overlay_figure, overlay_rows

IMAGE = np.full((12, 12, 3), 128, np.uint8)


def test_heat_map_peaks_where_the_relevancy_lies_and_ignores_prompts_and_a_flat_one_is_cold():
    assert not heat_map(np.ones(4), 8, 4).any()
    vision = np.zeros(9 + 2)
    vision[5], vision[9:] = 1.0, 7.0
    heat = heat_map(vision, 12, 9)
    assert heat.min() == 0 and heat.max() == 1
    rows, columns = np.nonzero(heat == heat.max())
    assert {*rows} <= {5, 6} and {*columns} <= {9, 10, 11}


def overlay(**changes):
    vision = np.append(np.linspace(0, 1, 9), [0.5, 0.5])
    facts = {
        "title": "IVLP",
        "vision": vision,
        "patches": 9,
        "tokens": ("SOS", "prompt 1", "cat", "."),
        "text": np.array([9, 1, 3, 0, 0]),
    }
    return Overlay(**(facts | changes))


def test_figure_has_the_picture_the_map_the_bar_and_the_words():
    figure = overlay_figure(IMAGE, [overlay()], title="cat.png")
    picture, above, _, below = figure.axes[:4]
    assert picture.get_title() == "cat.png" and above.get_title() == "IVLP"
    bar = above.child_axes[0]
    assert bar.patches[0].get_height() == pytest.approx(1 / 5.5)
    assert bar.get_xlabel() == "prompts\n18 %"
    nothing = overlay_figure(IMAGE, [overlay(vision=np.zeros(11))]).axes[1].child_axes[0]
    assert nothing.get_xlabel() == "prompts\n0 %"
    assert [text.get_text() for text in below.texts] == ["SOS", "prompt 1", "cat", "."]


def test_words_are_darker_the_more_relevant_and_sos_does_not_set_the_scale():
    texts = overlay_figure(IMAGE, [overlay()]).axes[3].texts
    brightness = {text.get_text(): sum(text.get_bbox_patch().get_facecolor()[:3]) for text in texts}
    assert brightness["SOS"] == brightness["cat"] < brightness["prompt 1"] < brightness["."]


def test_without_prompts_or_text_there_is_neither_bar_nor_words():
    figure = overlay_figure(IMAGE, [overlay(vision=np.ones(9), tokens=(), text=None)])
    assert not figure.axes[1].child_axes and not figure.axes[3].texts


def test_so_many_prompts_that_the_row_would_fill_a_larger_square():
    """Nine patches and seven prompts are sixteen tokens, which are no grid of four by four."""
    vision = np.append(np.linspace(0, 1, 9), np.full(7, 5.0))
    above = overlay_figure(IMAGE, [overlay(vision=vision)]).axes[1]
    np.testing.assert_array_equal(above.images[1].get_array(), heat_map(vision[:9], 12, 9))
    assert above.child_axes[0].get_xlabel() == f"prompts\n{100 * 35 / 39.5:.0f} %"


def test_long_texts_go_on_in_a_second_line():
    words = ("SOS", *(f"word{index}" for index in range(12)))
    texts = overlay_figure(IMAGE, [overlay(tokens=words, text=np.ones(13))]).axes[3].texts
    assert len({text.get_position()[1] for text in texts}) > 1


def test_pictures_one_below_the_other_each_have_their_overlay():
    figure = overlay_rows([IMAGE, 255 - IMAGE], [overlay(), overlay(title="Bias", tokens=(), text=None)])
    first, heat, _, words, second, other, *_ = figure.axes[:8]
    for axes, image in ((first, IMAGE), (second, 255 - IMAGE)):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert (heat.get_title(), other.get_title(), len(words.texts)) == ("IVLP", "Bias", 4)


def test_save_writes_one_png_and_dollar_signs_are_no_mathematics(tmp_path):
    odd = overlay(title=r"cash $\oops$ 5 %", tokens=("SOS", "$x_", "$$", "^"))
    style.save_png(overlay_figure(IMAGE, [overlay(), odd]), tmp_path / "out" / "cat.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat.png"]
    assert (tmp_path / "out" / "cat.png").read_bytes()[:4] == b"\x89PNG"
