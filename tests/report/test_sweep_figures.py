"""The pictures of a sweep: accuracy against shots and costs, and gains; numbers against plain NumPy."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipbias.report import accuracy_figure, cost_figures, cost_tables, read_sweep, render_tables, style
from clipbias.report.names import method_name
from clipbias.report.sweep_figures import MARKER, cost_scatter, duration_words, gain_figure, name_points
from clipbias.tuning import METHODS, Kind
from tests.report.test_frames import kept, run

PARAMETERS = {"vpt": 30, "ivlp_matched": 20, "bias": 20, "coop": 10}
RATES = {"vpt": 0.7, "ivlp_matched": 0.4, "bias": 0.9, "coop": 0.6}
IMAGES = {"a": 150, "b": 120}
ZOO = Path(__file__).parents[2] / "docs/images/zoo.csv"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with its answers, and which images each run was right on, `[seeds, images]`."""
    folder = tmp_path_factory.mktemp("answers")
    draw = np.random.default_rng(0)
    rows = []
    right = {}
    for dataset, images in IMAGES.items():
        for method, shots in [("zero_shot", 0), *itertools.product(RATES, (4, 16))]:
            for seed in (1, 2, 3) if shots else (None,):
                correct = draw.random(images) < RATES.get(method, 0.5)
                right.setdefault((method, dataset, shots), []).append(correct)
                facts = {"parameters": PARAMETERS.get(method, 0), "images": images}
                if method == "coop":  # as if it grew with the classes; ten on average
                    facts["parameters"] = {"a": 5, "b": 15}[dataset]
                facts["predictions"] = kept(folder, f"{method}-{dataset}-{shots}-{seed}", correct)
                facts["training_seconds"] = 0.0 if method == "zero_shot" else 2.0 + len(method)
                rows.append(run(method, dataset, shots, seed, 100 * correct.mean(), **facts))
    return read_sweep(rows, folder), {key: np.array(values, float) for key, values in right.items()}


def accuracy(right, method, dataset, shots):
    """A mean in percent, and the variances of images and of seeds."""
    of_seeds = 100 * right[method, dataset, shots].mean(1)
    share = of_seeds.mean() / 100
    return of_seeds.mean(), 1e4 * share * (1 - share) / IMAGES[dataset], of_seeds.var(ddof=1) / len(of_seeds)


def test_accuracy_against_shots(swept):
    """A panel per dataset and one for their average; lines, errors and zero-shot's level."""
    sweep, right = swept
    figure = accuracy_figure(sweep)
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b", "Average"]
    for axes, datasets in zip(figure.axes, ("a", "b", "ab"), strict=True):
        lines = {container.get_label(): container for container in axes.containers}
        assert set(lines) == set(map(method_name, RATES))
        for method in RATES:
            line, _, (bars,) = lines[method_name(method)]
            means, errors = [], []
            for shots in (4, 16):
                each = [accuracy(right, method, dataset, shots) for dataset in datasets]
                means.append(np.mean([mean for mean, *_ in each]))
                errors.append(np.sqrt(sum(sum(variances) for _, *variances in each)) / len(each))
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), means)
            halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
            np.testing.assert_allclose(halves, errors)
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [4, 16], rtol=0.15)
        level = next(line for line in axes.lines if line.get_label() == "Zero-shot")
        plain = np.mean([100 * right["zero_shot", dataset, 0].mean() for dataset in datasets])
        np.testing.assert_allclose(level.get_ydata(), plain)
        assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "16"]


@pytest.mark.parametrize("datasets", [("a",), pytest.param(tuple("abcdefghijk"), marks=pytest.mark.long)])
def test_methods_are_named_in_a_legend_that_fits(datasets):
    made = [
        run(method, dataset, k, 1, 40.0 + (k or 0) + 2 * number)
        for number, method in enumerate(METHODS)
        for dataset in datasets
        for k in ((None,) if method == "zero_shot" else (4, 16))
    ]
    figure = accuracy_figure(made)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [preset.label for _, preset in METHODS.values()]
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    for axes in figure.axes:
        assert not axes.axison or axes.get_tightbbox().y0 >= box.y1 - 1
        assert not axes.axison or axes.get_window_extent().height > 80


def test_no_two_methods_look_alike():
    looks = [style.method_look(method) for method in METHODS]
    assert len(set(looks)) == len(looks)


@pytest.mark.ci
@pytest.mark.parametrize(
    "rows",
    [[], [run()], [run("zero_shot", shots=None)], [run(dataset=name) for name in "abcde"]],
    ids=["nothing", "one run", "zero-shot only", "two lines of panels"],
)
def test_other_shapes_of_results_can_be_drawn(rows):
    assert style.png_bytes(accuracy_figure(rows), dpi=40)[:8] == b"\x89PNG\r\n\x1a\n"


def test_base_to_new_draws_the_harmonic_mean_unless_told_otherwise():
    made = [run(shots=k, accuracy=None, accuracies={"base": 80.0, "new": 60.0}) for k in (4, 16)]
    for measure, value in ((None, 2 * 80 * 60 / 140), ("new", 60.0)):
        axes = accuracy_figure(made, measure=measure).axes[0]
        assert axes.get_ylabel() == f"{measure or 'H'} (%)"
        np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), value)


def test_gains_over_zero_shot(swept):
    """By plain NumPy, images compared in pairs; the largest is on top, and equal budgets are neighbours."""
    sweep, right = swept
    made = gain_figure(sweep)
    frame = made.numbers.set_index("method")
    for method in RATES:
        gains = []
        variances = []
        for dataset in IMAGES:
            tuned, plain = right[method, dataset, 16], right["zero_shot", dataset, 0][0]
            gains.append(100 * (tuned.mean() - plain.mean()))
            change = tuned.mean(0) - plain
            variances.append(1e4 * (change.var(ddof=1) / len(change) + tuned.mean(1).var(ddof=1) / 3))
        mean = np.mean(gains)
        half = 1.96 * np.sqrt(np.sum(variances)) / 2
        row = frame.loc[method, ["value", "low", "high", "a", "b"]].astype(float)
        np.testing.assert_allclose(row, [mean, mean - half, mean + half, *gains])
        assert frame.loc[method, "parameters"] == PARAMETERS[method]
    assert list(frame.index) == ["bias", "ivlp_matched", "vpt", "coop"]  # IVLP beside bias tuning, though the last
    assert frame["value"].idxmin() == "ivlp_matched" and list(frame["varies"]) == [
        name == "coop" for name in frame.index
    ]
    (axes,) = made.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(frame["label"])
    dots = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    whiskers = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2][: len(frame)]
    np.testing.assert_array_equal(np.column_stack([dots, whiskers]), frame[["value", "low", "high"]])
    shown = [text.get_text() for text in axes.texts]
    assert f"{frame['value'].iloc[0]:+.1f}" in shown and {"mean 10", "30", "parameters"} <= set(shown)
    assert len(axes.patches) == 1  # one budget that two methods have
    assert "mean of 2 datasets and 3 seeds, 16 images per class" in made.caption
    assert gain_figure(read_sweep([run("bias"), run("vpt")])) is None
    assert gain_figure(read_sweep([run("zero_shot", shots=None, seed=None)])) is None


def test_every_built_in_method_has_a_kind_that_is_shown():
    assert set(Kind) == set(style.KINDS) - {None} >= {kind.kind for kind, _ in METHODS.values()}
    for name, (kind, _) in METHODS.items():  # what trains no number by steps, and learns none
        assert kind.kind != Kind.TRAINING_FREE or not kind.trains, name


def test_costs_are_the_means_of_the_rows_and_drawn_as_the_table_says(swept):
    sweep, right = swept
    few, table = cost_tables(sweep)
    assert (few.title, table.title) == ("Accuracy and cost, 4 shots", "Accuracy and cost, 16 shots")
    assert table.columns == ("Method", "Kind", "Accuracy", "Parameters", "Training")
    names = {"zero_shot": ("Zero-shot", "Training-free"), "coop": ("CoOp", "Prompts"), "vpt": ("VPT", "Prompts")}
    names |= {"ivlp_matched": ("IVLP (matched budget)", "Prompts"), "bias": ("Bias tuning", "Weights")}
    assert [row[0] for row in table.rows] == [name for name, _ in names.values()]
    expected = {}
    for row, (method, words) in zip(table.rows, names.items(), strict=True):
        shots = 16 if method in RATES else 0
        each = [accuracy(right, method, dataset, shots) if shots else
                (100 * (share := right[method, dataset, 0].mean()), 1e4 * share * (1 - share) / IMAGES[dataset])
                for dataset in IMAGES]  # fmt: skip
        mean = np.mean([numbers[0] for numbers in each])
        error = np.sqrt(sum(sum(numbers[1:]) for numbers in each)) / 2
        seconds = 2 + len(method) if shots else 0
        numbers = f"{PARAMETERS.get(method, 0)}", duration_words(seconds)
        assert tuple(row) == (*words, f"{mean:.1f} ± {error:.1f}", *numbers)
        expected[words[0]] = (PARAMETERS.get(method, 0), seconds, mean)
    for column, figure in enumerate(cost_figures(sweep)):
        assert figure.name == ("accuracy_by_parameters", "accuracy_by_time")[column]
        frame = figure.numbers.set_index("label")
        free, paid = figure.figure.axes  # what costs nothing has no place on a logarithmic axis
        drawn = [place for line in (*free.lines, *paid.lines) for place in line.get_xydata() if line.get_gid() is None]
        for name, numbers in expected.items():
            x, y = numbers[column], numbers[2]
            np.testing.assert_allclose(frame.loc[name].iloc[2:4].astype(float), [x, y])
            assert np.isclose(drawn, [x, y], rtol=0.3 if x == 20 else 1e-6, atol=1e-6).all(1).any(), name  # two at 20
        assert sorted(text.get_text() for axes in (free, paid) for text in axes.texts) == sorted(expected)


def test_what_was_not_measured_is_left_out_and_tables_of_accuracies_have_no_times():
    timed = [run(name, training_seconds=4.0) for name in ("bias", "coop")]
    without = [{name: value for name, value in row.items() if name != "training_seconds"} for row in timed]
    assert cost_tables(read_sweep(without)) == () and cost_figures(read_sweep(without)) == ()
    (table,) = cost_tables(read_sweep([timed[0], without[1]]))
    assert [row[0] for row in table.rows] == ["Bias tuning"]
    assert render_tables(read_sweep(timed), "html") == render_tables(read_sweep(without), "html")


def test_durations_have_two_digits_and_a_unit():
    seconds = (0, 4e-6, 0.0031, 0.25, 12.3, 270, 7200)
    words = ["0 s", "4.0 µs", "3.1 ms", "250 ms", "12 s", "4.5 min", "2.0 h"]
    assert list(map(duration_words, seconds)) == words


@pytest.fixture(scope="module")
def zoo():
    return pd.read_csv(ZOO)


@pytest.fixture(scope="module")
def scatter(zoo):
    return cost_scatter(zoo, x="parameters", y="accuracy", x_label="learned parameters", y_label="accuracy (%)")


def markers(axes):
    drawn = [line for line in axes.lines if line.get_gid() != "leader"]
    return np.concatenate([np.column_stack([line.get_xdata(), line.get_ydata()]) for line in drawn])


def test_no_name_covers_a_marker_or_another_name_or_leaves_its_panel(zoo, scatter):
    """And no line to a name crosses another name."""
    assert sorted(text.get_text() for axes in scatter.axes for text in axes.texts) == sorted(zoo["label"])
    half = 5 * scatter.dpi / 72 / 2
    for axes in scatter.axes:
        names = [text.get_window_extent().extents for text in axes.texts]
        places = axes.transData.transform(markers(axes))
        boxes = names + [np.array([x - half, y - half, x + half, y + half]) for x, y in places]
        for box, other in itertools.combinations(boxes, 2):
            assert not ((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all())
        assert all(axes.bbox.x0 - 1 <= box[0] and box[2] <= axes.bbox.x1 + 1 for box in names)
        for line in [line for line in axes.lines if line.get_gid() == "leader"]:
            start, end = axes.transData.transform(line.get_xydata())
            for x, y in start + np.linspace(0.02, 0.9, 60)[:, None] * (end - start):
                assert not any(box[0] < x < box[2] and box[1] < y < box[3] for box in names)


def test_points_stand_at_their_numbers(zoo, scatter):
    """Markers that would cover each other stand side by side, by less than six of their widths."""
    free, paid = scatter.axes
    np.testing.assert_allclose(sorted(markers(free)[:, 1]), sorted(zoo.loc[zoo["parameters"] == 0, "accuracy"]))
    assert [label.get_text() for label in free.get_xticklabels()] == ["0"] and paid.get_xscale() == "log"
    paid_rows = zoo[zoo["parameters"] > 0].sort_values(["accuracy", "parameters"])
    drawn = markers(paid)[np.lexsort(markers(paid).T)]
    np.testing.assert_allclose(drawn[:, 1], paid_rows["accuracy"])
    width = MARKER * scatter.dpi / 72
    expected = paid.transData.transform(paid_rows[["parameters", "accuracy"]])
    moved = np.abs(paid.transData.transform(drawn) - expected)[:, 0]
    assert (moved < 6 * width).all() and (moved < 1).sum() > len(paid_rows) / 2
    alone = cost_scatter(zoo[zoo["parameters"] > 0], x="parameters", y="accuracy", x_label="x", y_label="y")
    assert len(alone.axes) == 1


def test_markers_of_one_place_stand_side_by_side():
    figure = style.new_figure(3, 2)
    axes = figure.subplots()
    for x in (1, 1, 1, 5):
        axes.plot(x, 2, "o")
    axes.set_xlim(0, 6)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    name_points(axes, "abcd", [False] * 4)
    pixels = axes.transData.transform(markers(axes))[:, 0]
    np.testing.assert_allclose(np.diff(sorted(pixels)[:3]), MARKER * axes.figure.dpi / 72)
    np.testing.assert_allclose(markers(axes)[3], [5, 2])
