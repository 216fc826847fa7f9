"""Grouping of runs: means, spreads, averages, failures, duplicates."""

import statistics

import pytest

from clipbias.report import summarize


def run(method="bias", dataset="demo/digits", shots=16, seed=1, accuracy=70.0, **others):
    return {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "accuracy": accuracy, **others}


def test_no_rows_is_an_empty_summary():
    summary = summarize([])
    assert summary.methods == summary.datasets == summary.shots == summary.failures == ()


def test_mean_and_sample_standard_deviation():
    values = [70.1, 72.4, 69.0]
    cell = summarize(run(seed=seed, accuracy=value) for seed, value in enumerate(values)).cell(
        "bias", "demo/digits", 16
    )
    mean = sum(values) / 3
    assert cell.mean == pytest.approx(mean)
    assert cell.spread == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)


def test_one_seed_has_no_spread():
    assert summarize([run()]).cell("bias", "demo/digits", 16).spread is None


def test_zero_shot_is_the_same_cell_at_every_number_of_shots():
    summary = summarize([run("zero_shot", shots=0, seed=None, accuracy=40.0), run(shots=4), run(shots=16)])
    assert summary.shots == (4, 16)
    assert summary.cell("zero_shot", "demo/digits", 4) == summary.cell("zero_shot", "demo/digits", 16)
    assert summary.cell("zero_shot", "demo/digits", 4).mean == 40.0


def test_zero_shot_rows_of_several_seeds_are_one_run():
    rows = [run("zero_shot", shots=0, seed=seed, accuracy=40.0) for seed in (1, 2, 3)]
    assert summarize(rows).cell("zero_shot", "demo/digits", 0).values == {None: 40.0}


def test_average_is_per_seed_first():
    rows = [run(dataset="a", seed=1, accuracy=60), run(dataset="a", seed=2, accuracy=70)]
    rows += [run(dataset="b", seed=2, accuracy=90), run(dataset="b", seed=1, accuracy=80)]
    average = summarize(rows).average("bias", 16)
    assert average.values == {1: 70.0, 2: 80.0}
    assert average.spread == pytest.approx(statistics.stdev([70.0, 80.0]))


def test_average_needs_every_dataset():
    summary = summarize([run(dataset="a"), run("coop", dataset="a"), run("coop", dataset="b")])
    assert summary.average("bias", 16) is None
    assert summary.average("coop", 16).mean == 70.0


def test_average_over_unequal_seeds_has_a_mean_and_no_spread():
    rows = [run(dataset="a", seed=1, accuracy=60), run(dataset="a", seed=2, accuracy=70), run(dataset="b", accuracy=90)]
    average = summarize(rows).average("bias", 16)
    assert average.mean == pytest.approx((65 + 90) / 2)
    assert average.spread is None


def test_the_last_row_of_the_same_run_counts():
    summary = summarize([run(accuracy=10.0), run(accuracy=20.0)])
    assert summary.cell("bias", "demo/digits", 16).values == {1: 20.0}


@pytest.mark.parametrize("order", [1, -1])
def test_a_failure_never_hides_a_finished_run(order):
    rows = [run(accuracy=55.0), run(accuracy=None, status="failed", error="killed")][::order]
    summary = summarize(rows)
    assert summary.failures == ()
    assert summary.cell("bias", "demo/digits", 16).values == {1: 55.0}


def test_failed_runs_are_kept_with_their_error():
    summary = summarize([run(seed=1), run(seed=2, accuracy=None, status="failed", error="non-finite loss")])
    assert [failure.error for failure in summary.failures] == ["non-finite loss"]
    assert summary.cell("bias", "demo/digits", 16).values == {1: 70.0}


def test_an_accuracy_that_is_no_number_is_a_failure():
    summary = summarize([run(accuracy=float("nan"))])
    assert "nan" in summary.failures[0].error
    assert summary.cell("bias", "demo/digits", 16).mean is None


def test_several_measures_per_run():
    row = run(accuracy=None, accuracies={"base": 80.0, "new": 60.0, "H": 68.57})
    summary = summarize([row])
    assert summary.measures == ("base", "new", "H")
    assert summary.cell("bias", "demo/digits", 16, "new").mean == 60.0


def test_methods_and_datasets_come_in_the_papers_order():
    rows = [run("mine", "zzz"), run("bias", "dtd"), run("zero_shot", "imagenet", shots=0)]
    summary = summarize(rows)
    assert summary.methods == ("zero_shot", "bias", "mine")
    assert summary.datasets == ("imagenet", "dtd", "zzz")


def test_facts_keep_what_differs():
    rows = [run(dataset="a", parameters=512, learning_rate=0.1), run(dataset="b", parameters=1024, learning_rate=0.2)]
    summary = summarize(rows)
    assert summary.facts["bias"].parameters == (512, 1024)
    assert summary.learning_rates == {"a": (0.1,), "b": (0.2,)}


def test_several_learning_rates_on_the_same_draw_are_rows_of_their_own():
    rows = [run(seed=seed, accuracy=50 + 10 * rate, learning_rate=rate) for seed in (1, 2) for rate in (0.5, 0.25)]
    summary = summarize([*rows, run("ivlp", learning_rate=0.5), run("zero_shot", shots=0, learning_rate=None)])
    assert summary.methods == ("zero_shot", "ivlp", "bias, rate 0.5", "bias, rate 0.25")
    assert summary.cell("bias, rate 0.25", "demo/digits", 16).mean == 52.5
    assert summary.facts["bias, rate 0.5"].learning_rates == (0.5,)


def test_a_rate_for_each_dataset_is_one_row():
    summary = summarize([run(learning_rate=0.5), run(dataset="demo/fashion", learning_rate=0.1)])
    assert summary.methods == ("bias",)


def test_calibration_is_averaged_like_accuracies():
    first = {"ece": 4.0, "adaptive_ece": 5.0, "temperature": 1.5, "ece_at_temperature": 2.0}
    rows = [
        run(calibration=first),
        run(seed=2, calibration={**first, "ece": 8.0}),
        run(method="coop"),  # of an earlier version
        run(method="coop", seed=2, status="failed", error="out of memory", calibration=first),
    ]
    found = summarize(rows).calibration
    assert found.methods == ("bias",)
    assert found.measures == ("ECE", "adaptive ECE", "temperature", "ECE at it")
    assert found.average("bias", 16, "ECE").values == {1: 4.0, 2: 8.0}
    assert found.average("bias", 16, "temperature").mean == 1.5
    assert summarize(rows).cell("coop", "demo/digits", 16).values == {1: 70.0}
    assert summarize([run()]).calibration is None


def test_calibration_of_several_evaluations_is_the_error_alone():
    both = {"base": {"ece": 4.0, "temperature": 1.5}, "new": {"ece": 9.0}}
    found = summarize([run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, calibrations=both)])
    assert found.measures == ("base", "new", "H")
    assert found.calibration.measures == ("base ECE", "new ECE")
