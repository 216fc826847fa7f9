"""The accuracy figure: panels, lines, bars, labels."""

import itertools
import random

import numpy as np
import pytest

from clipbias.report import accuracy_figure, read_sweep, style
from clipbias.tuning import METHODS


def rows(datasets=("a", "b"), shots=(4, 16), seeds=(1, 2)):
    draw = random.Random(0)
    made = []
    for dataset in datasets:
        made.append({"method": "zero_shot", "dataset": dataset, "shots": None, "seed": None, "accuracy": 40.0})
        for method in ("coop", "bias"):
            made += [
                {
                    "method": method,
                    "dataset": dataset,
                    "shots": k,
                    "seed": seed,
                    "images": 99,
                    "accuracy": draw.uniform(50, 90),
                }
                for k in shots
                for seed in seeds
            ]
    return made


def lines(axes):
    return {container.get_label(): container for container in axes.containers}


@pytest.fixture(scope="module")
def figure():
    return accuracy_figure(rows())


def test_one_panel_per_dataset_and_one_for_the_average(figure):
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "Average"]


def test_points_and_error_bars_are_the_summarys_numbers(figure):
    cells = read_sweep(rows()).cells.loc[[("accuracy", "bias", "b", shots) for shots in (4, 16)]]
    axes = figure.axes[1]
    container = lines(axes)["bias"]
    line, _, (bars,) = container
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), cells["mean"])
    halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
    np.testing.assert_allclose(halves, cells["error"])
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [4, 16], rtol=0.15)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "16"]


def test_zero_shot_is_a_level(figure):
    level = next(line for line in figure.axes[0].lines if line.get_label() == "zero_shot")
    assert set(level.get_ydata()) == {40.0}


def test_names_stand_beside_the_last_panel_without_touching(figure):
    labels = figure.axes[-1].texts
    assert {label.get_text() for label in labels} == {"Zero-shot", "CoOp", "Bias tuning"}
    assert all(not axes.texts for axes in figure.axes[:-1])
    figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent().y0, label.get_window_extent().y1) for label in labels)
    assert all(high <= low + 1 for (_, high), (low, _) in itertools.pairwise(boxes))


@pytest.mark.parametrize("datasets", [("a",), pytest.param(tuple("abcdefghijk"), marks=pytest.mark.long)])
def test_many_methods_are_named_in_a_legend_that_fits(datasets):
    made = [
        {"method": method, "dataset": dataset, "shots": k, "seed": 1, "accuracy": 40.0 + (k or 0) + 2 * number}
        for number, method in enumerate(METHODS)
        for dataset in datasets
        for k in ((None,) if method == "zero_shot" else (4, 16))
    ]
    figure = accuracy_figure(made)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [preset.label for _, preset in METHODS.values()]
    assert not figure.axes[-1].texts
    box = legend.get_window_extent()
    whole = figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    for axes in figure.axes:
        assert not axes.get_visible() or axes.get_tightbbox().y0 >= box.y1 - 1
        assert not axes.get_visible() or axes.get_window_extent().height > 80


def test_no_two_methods_look_alike():
    method_looks = [style.method_look(method) for method in METHODS]
    assert len(set(method_looks)) == len(method_looks)


@pytest.mark.ci
@pytest.mark.parametrize(
    "made",
    [[], rows(datasets=("a",)), rows(shots=(16,), seeds=(1,)), rows(shots=()), rows(datasets=tuple("abcde"))],
    ids=["nothing", "one dataset", "one seed", "zero-shot only", "two lines of panels"],
)
def test_other_shapes_of_results_can_be_drawn(made):
    figure = accuracy_figure(made)
    assert style.png_bytes(figure, dpi=40)[:8] == b"\x89PNG\r\n\x1a\n"


def test_base_to_new_draws_the_harmonic_mean_unless_told_otherwise():
    made = [
        {"method": "bias", "dataset": "a", "shots": k, "seed": 1, "accuracies": {"base": 80.0, "new": 60.0}}
        for k in (4, 16)
    ]
    for measure, value in ((None, 2 * 80 * 60 / 140), ("new", 60.0)):
        axes = accuracy_figure(made, measure=measure).axes[0]
        assert axes.get_ylabel() == f"{measure or 'H'} (%)"
        np.testing.assert_allclose(np.asarray(lines(axes)["bias"][0].get_ydata(), float), value)
