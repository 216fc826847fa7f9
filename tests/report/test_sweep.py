"""A sweep's frames, the numbers of its tables and its pictures, against plain NumPy."""

import itertools
import math
import re

import numpy as np
import pytest

from clipbias.report import accuracy_figure, cost_figures, cost_tables, read_sweep, render_tables, style
from clipbias.report.frames import AVERAGE, harmonic_error
from clipbias.report.names import method_name
from clipbias.report.sweep_figures import duration_words, gain_figure
from clipbias.report.sweep_tables import best_methods, power_words, write_tables
from clipbias.tuning import METHODS, Kind


def run(method="bias", dataset="demo/digits", shots=16, seed=1, accuracy=70.0, **others):
    facts = {"parameters": 15360, "parameters_vision": 9216, "parameters_text": 6144, "parameters_shared": 0}
    row = {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "accuracy": accuracy, "images": 100}
    return row | facts | {"learning_rate": 0.0025, "status": "ok"} | others


def cell(rows, method="bias", shots=16, measure="accuracy"):
    return read_sweep(rows).cells[measure, method, "demo/digits", shots]


def keep_answers(folder, name, right, images=None):
    """Answers to images, in a file that a row names."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(len(right)) % 5
    images = np.array([f"{i}.png" for i in range(len(right))]) if images is None else images
    predicted = np.where(right, labels, (labels + 1) % 5)
    np.savez(folder / f"{name}.npz", images=images, labels=labels, predicted=predicted)
    return {"test": name}


RATES = {"coop": 0.6, "vpt": 0.88, "ivlp_matched": 0.4, "bias": 0.9}
PARAMETERS = {"coop": 10, "vpt": 30, "ivlp_matched": 20, "bias": 20}
IMAGES = {"a": 150, "b": 120}
NAMES = {"zero_shot": ("Zero-shot", "Training-free"), "coop": ("CoOp", "Prompts"), "vpt": ("VPT", "Prompts")}
NAMES |= {"ivlp_matched": ("IVLP (matched budget)", "Prompts"), "bias": ("Bias tuning", "Weights")}


class Swept:
    """A sweep with its answers, and which images each run was right on."""

    def __init__(self, folder):
        draw = np.random.default_rng(0)
        self.right = {}  # [seeds, images] by method, dataset and shots
        rows = []
        for dataset, images in IMAGES.items():
            for method, shots in [("zero_shot", 0), *itertools.product(RATES, (4, 16))]:
                seeds = (1, 2, 3) if shots else (None,)
                right = draw.random((len(seeds), images)) < RATES.get(method, 0.5)
                self.right[method, dataset, shots] = right.astype(float)
                for seed, correct in zip(seeds, right, strict=True):
                    facts = {"parameters": PARAMETERS.get(method, 0), "images": images}
                    if method == "coop":  # as if it grew with the classes; ten on average
                        facts["parameters"] = {"a": 5, "b": 15}[dataset]
                    facts["predictions"] = keep_answers(folder, f"{method}-{dataset}-{shots}-{seed}", correct)
                    facts["training_seconds"] = 2.0 + len(method) if shots else 0.0
                    rows.append(run(method, dataset, shots, seed, 100 * correct.mean(), **facts))
        self.sweep = read_sweep(rows, folder)

    def of(self, method, dataset, shots):
        return 100 * self.right[method, dataset, shots if method in RATES else 0]

    def accuracy(self, method, datasets, shots):
        """The mean in percent over seeds and datasets, and its standard error: of the images, and of the seeds."""
        each = [self.of(method, dataset, shots) for dataset in datasets]
        variances = []
        for right in each:
            of_seeds = right.mean(1)
            variances.append(right.mean() * (100 - right.mean()) / right.shape[1])
            variances.append(of_seeds.var(ddof=1) / len(of_seeds) if len(of_seeds) > 1 else 0.0)
        return np.mean([right.mean() for right in each]), np.sqrt(sum(variances)) / len(each)

    def difference(self, first, second, datasets, shots):
        """How much more right the first is, and the standard error of that, images compared in pairs."""
        apart, variances = [], []
        for dataset in datasets:
            pair = [self.of(method, dataset, shots) for method in (first, second)]
            change = pair[0].mean(0) - pair[1].mean(0)
            apart.append(change.mean())
            variances.append(change.var(ddof=1) / len(change))
            variances += [right.mean(1).var(ddof=1) / len(right) for right in pair if len(right) > 1]
        return np.mean(apart), np.sqrt(sum(variances)) / len(datasets)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return Swept(tmp_path_factory.mktemp("answers"))


def test_a_tables_numbers_and_what_is_bold(swept):
    tables = dict(part.split("\n", 1) for part in render_tables(swept.sweep, "markdown").split("### ")[1:])
    for shots in (4, 16):
        table = tables[f"Accuracy, {shots} shots"]
        head, _, *lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
        assert [name.strip() for name in head[:4]] == ["Method", "a", "b", "Average"]
        shown = {name.strip(): texts for name, *texts in lines}
        for column, datasets in enumerate(("a", "b", "ab")):
            best = max(NAMES, key=lambda method: swept.accuracy(method, datasets, shots)[0])
            bold = set()
            for method, (name, _) in NAMES.items():
                mean, error = swept.accuracy(method, datasets, shots)
                assert re.findall(r"[\d.]+", shown[name][column]) == [f"{mean:.1f}", f"{error:.1f}"]
                behind, doubt = swept.difference(best, method, datasets, shots)
                assert ("**" in shown[name][column]) == (behind <= 1.959963984540054 * doubt)
                bold |= {method} if behind <= 1.959963984540054 * doubt else set()
            assert bold >= {"bias"} and not bold & {"coop", "zero_shot"}
            assert column or "vpt" in bold  # which is not told apart from the best


def test_accuracy_against_shots(swept):
    """A panel per dataset and one for their average; lines, errors and zero-shot's level."""
    figure = accuracy_figure(swept.sweep)
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b", "Average"]
    for axes, datasets in zip(figure.axes, ("a", "b", "ab"), strict=True):
        lines = {container.get_label(): container for container in axes.containers}
        assert set(lines) == set(map(method_name, RATES))
        for method in RATES:
            line, _, (bars,) = lines[method_name(method)]
            means, errors = zip(*(swept.accuracy(method, datasets, shots) for shots in (4, 16)), strict=True)
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), means)
            np.testing.assert_allclose([np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()], errors)
            np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [4, 16], rtol=0.15)
        level = next(line for line in axes.lines if line.get_label() == "Zero-shot")
        np.testing.assert_allclose(level.get_ydata(), swept.accuracy("zero_shot", datasets, 4)[0])
        assert [text.get_text() for text in axes.get_xticklabels()] == ["4", "16"]


def test_gains_over_zero_shot(swept):
    """The largest is on top, and equal budgets are neighbours."""
    made = gain_figure(swept.sweep)
    frame = made.numbers.set_index("method")
    for method in RATES:
        mean, error = swept.difference(method, "zero_shot", "ab", 16)
        each = [swept.difference(method, "zero_shot", dataset, 16)[0] for dataset in "ab"]
        row = frame.loc[method, ["value", "low", "high", "a", "b"]].astype(float)
        np.testing.assert_allclose(
            row, [mean, mean - 1.959963984540054 * error, mean + 1.959963984540054 * error, *each]
        )
        assert frame.loc[method, "parameters"] == PARAMETERS[method]
        assert frame.loc[method, "varies"] == (method == "coop")
    assert list(frame.index) == ["bias", "ivlp_matched", "vpt", "coop"]  # IVLP beside bias tuning, though the last
    (axes,) = made.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(frame["label"])
    dots = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    whiskers = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2][: len(frame)]
    np.testing.assert_array_equal(np.column_stack([dots, whiskers]), frame[["value", "low", "high"]])
    assert gain_figure(read_sweep([run("bias"), run("vpt")])) is None
    assert gain_figure(read_sweep([run("zero_shot", shots=None, seed=None)])) is None


def test_nothing_of_an_earlier_request_stays(tmp_path):
    costs = {"parameters": 5, "training_seconds": 2.0}
    tuned = [run(method, shots=shots, **costs) for shots in (4, 16) for method in ("bias", "vpt")]
    rows = [run("zero_shot", shots=None, seed=None), *tuned]
    write_tables(rows, tmp_path)
    everything = {path.name for path in tmp_path.iterdir()}
    assert {"gains.csv", "accuracy.png", "accuracy_by_parameters.csv", "costs.md"} <= everything
    (fresh := tmp_path / "fresh").mkdir()
    for folder in (tmp_path, fresh):
        write_tables(rows[:1], folder)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {path.name for path in fresh.iterdir()}
    write_tables(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == everything


def test_costs_are_the_means_of_the_rows_and_drawn_as_the_table_says(swept):
    few, table = cost_tables(swept.sweep)
    assert (few.title, table.title) == ("Accuracy and cost, 4 shots", "Accuracy and cost, 16 shots")
    assert table.columns == ("Method", "Kind", "Accuracy", "Parameters", "Training")
    expected = {}
    for row, (method, words) in zip(table.body, NAMES.items(), strict=True):
        mean, error = swept.accuracy(method, "ab", 16)
        seconds = 2 + len(method) if method in RATES else 0
        numbers = f"{PARAMETERS.get(method, 0)}", duration_words(seconds)
        assert tuple(row) == (*words, f"{mean:.1f} ± {error:.1f}", *numbers)
        expected[words[0]] = (PARAMETERS.get(method, 0), seconds, mean)
    for column, figure in enumerate(cost_figures(swept.sweep)):
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
    assert [row[0] for row in table.body] == ["Bias tuning"]
    assert render_tables(read_sweep(timed), "html") == render_tables(read_sweep(without), "html")
    seconds = (0, 4e-6, 0.0031, 0.25, 12.3, 270, 7200)
    words = ["0 s", "4.0 µs", "3.1 ms", "250 ms", "12 s", "4.5 min", "2.0 h"]
    assert list(map(duration_words, seconds)) == words


def test_parts_of_an_error():
    images = cell([run(images=400), run(seed=2, images=300)])["images_error"]
    assert images == pytest.approx(100 * np.sqrt(0.7 * 0.3 / 300))
    assert np.isnan(cell([run(), run(seed=2, images=None)])["error"])
    values = [70.0, 73.0, 71.5, 69.0]
    row = cell([run(seed=seed, accuracy=value) for seed, value in enumerate(values)])
    assert row["seeds_error"] == pytest.approx(np.std(values, ddof=1) / 2) and cell([run()])["seeds_error"] == 0
    rng = np.random.default_rng(1)
    base, new = rng.normal(80, 0.8, 200_000), rng.normal(60, 1.1, 200_000)
    assert harmonic_error(80, 60, (0.8, 1.1)) == pytest.approx(np.std(2 * base * new / (base + new)), rel=0.01)


def test_base_and_new_have_a_harmonic_mean_for_each_seed():
    accuracies = [{"base": 80.0, "new": 60.0}, {"base": 82.0, "new": 58.0}]
    rows = [
        run(seed=seed, accuracy=None, images=None, accuracies=values, tested_images={"base": 100, "new": 200})
        for seed, values in enumerate(accuracies)
    ]
    each = [2 * of_seed["base"] * of_seed["new"] / (of_seed["base"] + of_seed["new"]) for of_seed in accuracies]
    row = cell(rows, measure="H")
    assert read_sweep(rows).measures == ("base", "new", "H")
    assert row["mean"] == pytest.approx(np.mean(each))
    halves = np.sqrt(81 * 19 / 100), np.sqrt(59 * 41 / 200)
    assert row["error"] == pytest.approx(np.hypot(harmonic_error(81, 59, halves), np.std(each, ddof=1) / np.sqrt(2)))
    for measure, value in ((None, row["mean"]), ("new", 59.0)):  # H is drawn unless another is asked for
        axes = accuracy_figure(rows, measure=measure).axes[0]
        assert axes.get_ylabel() == f"{measure or 'H'} (%)"
        np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), value)


def test_methods_that_the_error_does_not_tell_apart_from_the_best(tmp_path):
    """IVLP answers like the best but for a few images: beyond the error in pairs and within it otherwise."""
    first = np.random.default_rng(5).random(400) < 0.7
    second, third = first.copy(), first.copy()
    second[np.flatnonzero(first)[:12]] = False
    third[np.flatnonzero(first)[:100]] = False
    rows = [
        run(name, accuracy=100 * right.mean(), images=400, predictions=keep_answers(tmp_path, name, right))
        for name, right in {"bias": first, "ivlp": second, "vpt": third}.items()
    ]

    def best(folder=tmp_path):
        return best_methods(read_sweep(rows, folder), "accuracy", "demo/digits", 16)

    assert best() == {"bias"} and best(None) == {"bias", "ivlp"}
    # Answers that are not those of the row, of other images, damaged, or outside the folder, count as not there.
    keep_answers(tmp_path, "ivlp", third)
    assert best() == {"bias", "ivlp"}
    keep_answers(tmp_path, "ivlp", second, np.array([f"{i}.jpg" for i in range(400)]))
    assert best() == {"bias", "ivlp"}
    (tmp_path / "ivlp.npz").write_bytes(b"PK")
    assert best() == {"bias", "ivlp"}
    keep_answers(tmp_path, "ivlp", second)
    rows[1]["predictions"] = {"test": f"../{tmp_path.name}/ivlp"}
    assert best() == {"bias", "ivlp"}
    # Without a number of images only the best is known, and those that are equal to it.
    bare = [run("bias", images=None), run("ivlp", images=None), run("vpt", images=None, accuracy=69.9)]
    assert best_methods(read_sweep(bare), "accuracy", "demo/digits", 16) == {"bias", "ivlp"}
    assert best_methods(read_sweep(bare[:1]), "accuracy", "demo/digits", 16) == set()


def test_which_difference_could_have_been_seen():
    """By two methods of two seeds each, without their answers: 2.8 standard errors of their difference."""
    accuracies = {"bias": (60.0, 64.0), "ivlp": (70.0, 71.0)}
    rows = [run(name, seed=seed, accuracy=pair[seed]) for name, pair in accuracies.items() for seed in (0, 1)]
    images = [math.sqrt(p * (100 - p) / 100) for p in (62.0, 70.5)]
    seeds = [np.std(pair, ddof=1) / math.sqrt(2) for pair in accuracies.values()]
    least = (1.959964 + 0.841621) * math.hypot(*images, *seeds)
    words = f"A difference of {least:.1f} points on demo/digits is detectable."
    assert power_words(read_sweep(rows), "accuracy", "demo/digits", 16) == words
    assert power_words(read_sweep(rows[:2]), "accuracy", "demo/digits", 16) == ""


def test_zero_shot_is_the_same_at_every_number_of_shots_and_one_run():
    rows = [run("zero_shot", shots=None, seed=seed, accuracy=40.0) for seed in (1, 2, 3)]
    assert read_sweep([*rows, run(), run(shots=4)]).shots == (4, 16)
    for shots, others in ((4, [run(shots=4)]), (16, [run()]), (None, [])):
        frozen = cell([*rows, *others], "zero_shot", shots)
        assert (frozen["mean"], frozen["seeds"]) == (40.0, 1)


def test_an_average_needs_every_dataset_and_all_come_in_the_papers_order():
    rows = [run("mine", "zzz"), run("bias", "dtd"), run("coop", "dtd"), run("coop", "imagenet", accuracy=80.0)]
    sweep = read_sweep([*rows, run("coop", "zzz", accuracy=90.0)])
    assert sweep.methods == ("coop", "bias", "mine") and sweep.columns == ("imagenet", "dtd", "zzz", AVERAGE)
    averages = sweep.table("accuracy", 16)[AVERAGE]
    assert averages["coop"] == 80.0 and np.isnan(averages["bias"])


def test_a_failure_never_hides_a_finished_run_and_the_last_row_counts():
    lost = run(accuracy=None, status="failed", error="killed")
    for rows in ([run(accuracy=10.0), run(accuracy=55.0), lost], [lost, run(accuracy=55.0)]):
        assert read_sweep(rows).failures == [] and cell(rows)["mean"] == 55.0
    sweep = read_sweep([run(), {**lost, "seed": 2}])
    assert [row["error"] for row in sweep.failures] == ["killed"]
    assert [cell["seeds"] for cell in sweep.cells.values()] == [1]
    assert read_sweep([]).methods == () and not read_sweep([]).cells


def test_several_learning_rates_on_the_same_draw_are_rows_of_their_own():
    rows = [run(seed=seed, accuracy=50 + 10 * rate, learning_rate=rate) for seed in (1, 2) for rate in (0.5, 0.25)]
    sweep = read_sweep([*rows, run("ivlp", learning_rate=0.5), run("zero_shot", shots=None, learning_rate=None)])
    assert sweep.methods == ("zero_shot", "ivlp", "bias, rate 0.5", "bias, rate 0.25")
    assert sweep.table("accuracy", 16)["demo/digits"]["bias, rate 0.25"] == 52.5
    assert read_sweep([run(learning_rate=0.5), run(dataset="b", learning_rate=0.1)]).methods == ("bias",)


def test_no_two_methods_look_alike_and_each_has_a_kind_that_is_shown():
    looks = [style.method_look(method) for method in METHODS]
    assert len(set(looks)) == len(looks)
    assert set(Kind) == set(style.KINDS) - {None} >= {kind.kind for kind, _ in METHODS.values()}
    for name, (kind, _) in METHODS.items():  # what trains no number by steps, and learns none
        assert kind.kind != Kind.TRAINING_FREE or not kind.trains, name
