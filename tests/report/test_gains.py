"""Gains over zero-shot: the numbers against plain NumPy, their order, and what is drawn."""

import numpy as np
import pytest

from clipbias.report.frames import read_sweep
from clipbias.report.sweep_figures import gain_figure, gain_frame
from tests.report.test_frames import kept, run

PARAMETERS = {"vpt": 30, "ivlp_matched": 20, "bias": 20, "coop": 10}
RATES = {"vpt": 0.7, "ivlp_matched": 0.4, "bias": 0.9, "coop": 0.6}


@pytest.fixture
def sweep(tmp_path):
    draw = np.random.default_rng(0)
    rows = []
    right = {}
    for dataset, images in (("a", 50), ("b", 80)):
        for method, rate in {"zero_shot": 0.5, **RATES}.items():
            for seed in (1, 2, 3) if method != "zero_shot" else (None,):
                correct = draw.random(images) < rate
                right.setdefault((method, dataset), []).append(correct)
                facts = {"parameters": PARAMETERS.get(method, 0), "images": images}
                if method == "coop":  # as if it grew with the classes; ten on average
                    facts["parameters"] = {"a": 5, "b": 15}[dataset]
                facts["predictions"] = kept(tmp_path, f"{method}-{dataset}-{seed}", correct)
                rows.append(run(method, dataset, 16 if seed else 0, seed, 100 * correct.mean(), **facts))
    return read_sweep(rows, tmp_path), right


def test_gains_and_intervals_by_plain_numpy(sweep):
    made, right = sweep
    frame = gain_frame(made).set_index("method")
    for method in RATES:
        gains = []
        variances = []
        for dataset in ("a", "b"):
            tuned, plain = np.array(right[method, dataset], float), np.array(right["zero_shot", dataset][0], float)
            gains.append(100 * (tuned.mean() - plain.mean()))
            change = tuned.mean(0) - plain
            variances.append(1e4 * (change.var(ddof=1) / len(change) + tuned.mean(1).var(ddof=1) / 3))
        mean = np.mean(gains)
        half = 1.96 * np.sqrt(np.sum(variances)) / 2
        row = frame.loc[method, ["value", "low", "high", "a", "b"]].astype(float)
        np.testing.assert_allclose(row, [mean, mean - half, mean + half, *gains])
        assert frame.loc[method, "parameters"] == PARAMETERS[method]


def test_the_largest_gain_is_on_top_and_equal_budgets_are_neighbours(sweep):
    frame = gain_frame(sweep[0])
    assert list(frame["method"]) == ["bias", "ivlp_matched", "vpt", "coop"]  # IVLP beside bias tuning, though the last
    assert frame["value"].idxmin() == 1


def test_what_is_drawn_is_the_frame(sweep):
    made = gain_figure(sweep[0])
    (axes,) = made.figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(made.numbers["label"])
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in dots] == list(made.numbers["value"])
    whiskers = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2][: len(names)]
    np.testing.assert_array_equal(whiskers, made.numbers[["low", "high"]])
    shown = [text.get_text() for text in axes.texts]
    assert f"{made.numbers['value'][0]:+.1f}" in shown and "parameters" in shown
    assert "mean 10" in shown and "30" in shown and "mean 30" not in shown
    assert list(made.numbers["varies"]) == [name == "coop" for name in made.numbers["method"]]
    assert len(axes.patches) == 1  # one budget that two methods have
    assert "mean of 2 datasets and 3 seeds, 16 images per class" in made.caption


def test_nothing_is_drawn_without_zero_shot():
    assert gain_figure(read_sweep([run("bias"), run("vpt")])) is None
    assert gain_figure(read_sweep([run("zero_shot", shots=None, seed=None)])) is None
