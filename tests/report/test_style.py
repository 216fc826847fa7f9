"""Saving figures and keeping labels apart."""

import matplotlib
import numpy as np

from clipbias.report import style


def drawn():
    with style.styled():
        figure = style.new_figure(2, 1)
        figure.subplots().plot([0, 1], [1, 2])
    return figure


def test_save_writes_vector_and_pixels_and_nothing_else(tmp_path):
    paths = style.save_figure(drawn(), tmp_path / "distance.entropy")
    assert [path.name for path in paths] == ["distance.entropy.pdf", "distance.entropy.png"]
    assert paths[0].read_bytes()[:5] == b"%PDF-" and paths[1].read_bytes()[:4] == b"\x89PNG"
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    first, second = (style.save_figure(drawn(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert style.svg_text(drawn()) == style.svg_text(drawn())


def test_the_callers_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    drawn()
    assert dict(matplotlib.rcParams) == before


def test_apart_keeps_order_and_distance():
    positions = np.random.default_rng(0).uniform(0, 5, 12)
    placed = style.apart(positions, 0.3)
    assert (np.argsort(placed) == np.argsort(positions)).all()
    assert np.diff(np.sort(placed)).min() >= 0.3 - 1e-9


def test_apart_leaves_what_is_already_apart():
    np.testing.assert_allclose(style.apart([3.0, 1.0, 2.0], 0.5), [3.0, 1.0, 2.0])
    np.testing.assert_allclose(style.apart([1.0, 1.0], 0.5), [0.75, 1.25])
    assert style.apart([], 1.0).shape == (0,)


def test_logarithmic_ticks_are_numbers() -> None:
    with style.styled():
        figure = style.new_figure(3, 2)
        axes = figure.add_subplot()
        axes.plot([131, 736], [0.001, 10000])
        style.log_scale(axes, "x")
        style.log_scale(axes)
        figure.draw_without_rendering()
        x, y = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis))
    assert {"200", "500"} <= {*x} and {"0.01", "100"} <= {*y}
    assert all(not text or float(text.replace(",", "")) > 0 for text in x + y)
