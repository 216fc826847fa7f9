"""Standard errors of accuracies and of differences, against NumPy and against what is drawn anew."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from clipbias.data.confusion import binomial_error
from clipbias.report import summarize
from clipbias.report.accuracy_tables import tables
from clipbias.report.captions import within_sentences
from clipbias.report.errors import WITHIN, Difference, Measured, difference, harmonic_error, seeds_error
from clipbias.report.run_accuracies import mean_accuracies


def run(method="bias", dataset="a", shots=4, seed=1, accuracy=70.0, **others):
    row = {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "accuracy": accuracy, "images": 400}
    return row | {"learning_rate": 0.1, "parameters": 9} | others


def drawn(rng, images=300, seeds=3, methods=1):
    """Correct or not `[methods, seeds, images]`: images are harder or easier, seeds better or worse."""
    ease = rng.normal(0.7, 1.2, (1, 1, images)) + rng.normal(0, 0.35, (methods, seeds, 1))
    return rng.random((methods, seeds, images)) < 1 / (1 + np.exp(-ease))


def test_a_cells_error_is_what_other_images_and_seeds_give():
    """The spread of means over 400 drawings of both; the error is conservative, and not by much."""
    rng = np.random.default_rng(0)
    told, means = [], []
    for _ in range(400):
        (correct,) = drawn(rng)
        each = 100 * correct.mean(1)
        cell = summarize(run(seed=s, accuracy=value, images=300) for s, value in enumerate(each)).cell("bias", "a", 4)
        told.append(cell.error)
        share = each.mean() / 100
        expected = np.sqrt(1e4 * share * (1 - share) / 300 + each.var(ddof=1) / 3)
        assert cell.error == pytest.approx(expected)
        means.append(each.mean())
    spread = np.std(means)
    assert 0.95 * spread < np.sqrt(np.mean(np.square(told))) < 1.35 * spread


def test_parts_of_an_error():
    assert binomial_error(84.0, 1000) == pytest.approx(100 * np.sqrt(0.84 * 0.16 / 1000))
    values = [70.0, 73.0, 71.5, 69.0]
    assert seeds_error(values) == pytest.approx(np.std(values, ddof=1) / 2) and seeds_error([5.0]) == 0
    rng = np.random.default_rng(1)
    base, new = rng.normal(80, 0.8, 200_000), rng.normal(60, 1.1, 200_000)
    assert harmonic_error(80, 60, (0.8, 1.1)) == pytest.approx(np.std(2 * base * new / (base + new)), rel=0.01)


def test_an_average_has_the_errors_of_its_datasets_and_of_its_own_seeds():
    values = {"a": ([60.0, 62.0], 200), "b": ([80.0, 85.0], 500)}
    rows = [
        run(dataset=name, seed=seed, accuracy=value, images=images)
        for name, (own, images) in values.items()
        for seed, value in enumerate(own)
    ]
    of_images = [np.mean(own) / 100 * (1 - np.mean(own) / 100) / images * 1e4 for own, images in values.values()]
    by_seed = np.mean([own for own, _ in values.values()], axis=0)
    average = summarize(rows).average("bias", 4)
    assert average.error == pytest.approx(np.sqrt(sum(of_images) / 4 + by_seed.var(ddof=1) / 2))
    (mean,), (error,) = mean_accuracies(rows, ["bias"])
    each = sum(np.var(own, ddof=1) / 2 / 4 for own, _ in values.values())
    assert mean == pytest.approx(71.75) and error == pytest.approx(np.sqrt(sum(of_images) / 4 + each))


def test_a_difference_over_the_same_images_is_surer_than_over_others():
    """Against the spread of 400 drawings, and against a bootstrap over images of one of them."""
    rng = np.random.default_rng(2)
    points, paired, unpaired = [], [], []
    for _ in range(400):
        correct = drawn(rng, methods=2)
        methods = []
        for own in correct:
            values = dict(enumerate(100 * own.mean(1)))
            error = binomial_error(100 * own.mean(), 300)
            methods.append(([Measured(values, error, dict(enumerate(own)))], [Measured(values, error)]))
        one, other = (difference(methods[0][kind], methods[1][kind]) for kind in (0, 1))
        assert (one.paired, other.paired) == (True, False) and one.points == pytest.approx(other.points)
        points.append(one.points)
        paired.append(one.error)
        unpaired.append(other.error)
    spread = np.std(points)
    assert 0.95 * spread < np.sqrt(np.mean(np.square(paired))) < 1.35 * spread
    assert np.mean(unpaired) > 1.1 * np.mean(paired)
    each = 100 * (correct[0].mean(0) - correct[1].mean(0))
    again = [each[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    by_seed = 100 * (correct[0].mean(1) - correct[1].mean(1))
    assert paired[-1] == pytest.approx(np.hypot(np.std(again), np.std(by_seed, ddof=1) / np.sqrt(3)), rel=0.05)


def test_a_difference_over_datasets_and_seeds_against_numpy():
    """Two datasets of unlike size: paired and not, seeds in common, of their own, or none on one side."""
    rng = np.random.default_rng(7)
    sizes, seeds, others = (50, 80), (1, 2, 3), (4, 5)
    right = [rng.random((2, 3, size)) < [[[0.6]], [[0.7]]] for size in sizes]  # dataset: method, seed, image

    def measured(each, own=seeds, error=2.0, kept=True):
        values = dict(zip(own, 100 * each.mean(1), strict=False))
        return Measured(values, error, dict(zip(own, each, strict=False)) if kept else {})

    def of_images(first, second):
        each = 100 * (first.mean(0) - second.mean(0))
        return each.var(ddof=1) / len(each)

    def check(found, points, images, by_seed, paired):
        assert found.points == pytest.approx(points) and found.paired is paired
        assert found.error == pytest.approx(np.sqrt(sum(images) / 4 + by_seed))

    means = np.array([100 * each.mean(2) for each in right])  # dataset, method, seed
    points = (means[:, 0] - means[:, 1]).mean()
    of_seeds = (means[:, 0] - means[:, 1]).mean(0).var(ddof=1) / 3
    pairs = [of_images(*each) for each in right]
    one, two = ([measured(each[method]) for each in right] for method in (0, 1))
    check(difference(one, two), points, pairs, of_seeds, True)
    check(difference(two, one), -points, pairs, of_seeds, True)
    # Of one dataset the answers were not kept: its images count as if each method had its own.
    half = [two[0], measured(right[1][1], error=3.0, kept=False)]
    check(difference(one, half), points, [pairs[0], 2.0**2 + 3.0**2], of_seeds, False)
    # Answers of only some seeds are none of the mean.
    some = [Measured(two[0].values, 3.0, {1: right[0][1][0]}), two[1]]
    check(difference(one, some), points, [2.0**2 + 3.0**2, pairs[1]], of_seeds, False)
    # Nothing is drawn for the second: the seeds of the first are all that varies.
    fixed = [measured(each[1][:1], (None,)) for each in right]
    constant = np.mean([100 * each[1][0].mean() for each in right])
    apart = [of_images(each[0], each[1][:1]) for each in right]
    check(difference(one, fixed), means[:, 0].mean() - constant, apart, means[:, 0].mean(0).var(ddof=1) / 3, True)
    # Seeds of their own do not go together.
    own = [measured(each[1][:2], others) for each in right]
    apart = [of_images(each[0], each[1][:2]) for each in right]
    by_itself = sum(means[d, 0].var(ddof=1) / 3 + means[d, 1, :2].var(ddof=1) / 2 for d in (0, 1)) / 4
    check(difference(one, own), means[:, 0].mean() - means[:, 1, :2].mean(), apart, by_itself, True)
    # What is not known has no difference.
    assert difference(one, [two[0], measured(right[1][1], error=None, kept=False)]) is None
    assert difference(one, [two[0], Measured({}, None)]) is None and difference([], []) is None
    # Methods that answer alike are within no error at all.
    assert difference(fixed, fixed) == Difference(0.0, 0.0, True) and difference(fixed, fixed).is_within
    assert pytest.approx(NormalDist().inv_cdf(0.975), abs=5e-3) == WITHIN
    assert [Difference(points, 2.0, True).is_within for points in (3.9, -3.9, 3.95, -3.95)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_cells_images_are_those_that_all_its_seeds_were_tested_on():
    assert summarize([run(images=400), run(seed=2, images=300)]).cell("bias", "a", 4).images_error == pytest.approx(
        100 * np.sqrt(0.7 * 0.3 / 300)
    )
    assert summarize([run(images=400), run(seed=2, images=None)]).cell("bias", "a", 4).images_error is None


def test_a_caption_tells_each_dataset_and_the_average_by_itself(tmp_path: Path):
    """IVLP is close on the first dataset, VPT on the second, and of VPT alone the answers were not kept."""
    images, rng = np.array([f"{i}.png" for i in range(400)]), np.random.default_rng(5)
    right = rng.random(400) < 0.7

    def rows(datasets, without="vpt"):
        made = []
        for number, dataset in enumerate(datasets):
            for method, wrong in (("bias", 0), ("ivlp", (2, 100)[number % 2]), ("vpt", (100, 2)[number % 2])):
                own = right.copy()
                own[np.flatnonzero(right)[:wrong]] = False
                kept = {} if method == without else predictions(tmp_path, f"{method}-{dataset}", own, images)
                made.append(run(method, dataset, accuracy=100 * own.mean(), predictions=kept))
        return made

    def caption(given):
        return within_sentences(summarize(given, predictions=tmp_path), 4, "accuracy")

    (told,) = caption(rows("ab"))
    assert f"{WITHIN} standard errors" in told and ": on a IVLP; on b VPT; on the average no other. Of many" in told
    assert "as if each method had its own" in told  # it holds for some of them
    assert "taken image by image" in caption(rows("ab", without=""))[0]
    # A method that was not run on all of them has no average, and is no reason to leave out those that were.
    (told,) = caption([row for row in rows("ab", without="") if (row["method"], row["dataset"]) != ("ivlp", "b")])
    assert ": on a IVLP; on b VPT; on the average no other. Of many" in told
    # What holds for one column alone is said, too.
    some = [row for row in rows("ab") if (row["method"], row["dataset"]) != ("vpt", "b")]
    assert "as if each method had its own" in caption(some)[0]
    # Which one is best on the average need not be so anywhere.
    each = {"bias": (70.0, 50.0), "ivlp": (60.0, 90.0), "vpt": (60.0, 89.0)}
    apart = [
        run(name, dataset, accuracy=own[number]) for name, own in each.items() for number, dataset in enumerate("ab")
    ]
    assert ": on a no other; on b VPT; on the average VPT. Of many" in caption(apart)[0]
    # Of many datasets the average alone is told.
    assert ": on the average no other. Of many" in caption(rows("abcde"))[0]
    assert caption(rows("ab")[:1]) == []


def predictions(folder: Path, name: str, correct: np.ndarray, images: np.ndarray) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    labels = np.arange(len(correct)) % 5
    np.savez(
        folder / f"{name}.npz", images=images, labels=labels, predicted=np.where(correct, labels, (labels + 1) % 5)
    )
    return {"test": name}


def test_a_caption_tells_which_methods_the_error_does_not_tell_apart(tmp_path: Path):
    """Two methods that answer alike but for a few images, beyond the error in pairs and within it otherwise."""
    images, rng = np.array([f"{i}.png" for i in range(400)]), np.random.default_rng(5)
    first = rng.random(400) < 0.7
    second, third = first.copy(), first.copy()
    second[np.flatnonzero(first)[:12]] = False
    third[np.flatnonzero(first)[:100]] = False
    rows = [
        run(method, accuracy=100 * own.mean(), predictions=predictions(tmp_path, method, own, images))
        for method, own in (("bias", first), ("ivlp", second), ("vpt", third))
    ]
    (close,) = within_sentences(summarize(rows), 4, "accuracy")
    assert ": IVLP. Of many comparisons" in close and "as if each method had its own" in close
    (close,) = within_sentences(summarize(rows, predictions=tmp_path), 4, "accuracy")
    assert ": no other. Of many" in close and "image by image" in close
    assert close in tables(summarize(rows, predictions=tmp_path))[0].caption
    # Answers that are not those of the row, of other images, or outside the folder, count as not there.
    predictions(tmp_path, "ivlp", third, images)
    assert "as if each" in within_sentences(summarize(rows, predictions=tmp_path), 4, "accuracy")[0]
    predictions(tmp_path, "ivlp", second, images[::-1])
    assert "as if each" in within_sentences(summarize(rows, predictions=tmp_path), 4, "accuracy")[0]
    predictions(tmp_path, "ivlp", second, images)
    rows[1]["predictions"] = {"test": f"../{tmp_path.name}/ivlp"}
    assert "as if each" in within_sentences(summarize(rows, predictions=tmp_path), 4, "accuracy")[0]


def test_captions_say_what_the_error_is_of():
    def caption(*rows):
        return tables(summarize(rows))[0].caption

    assert "Mean over n = 2 seeds (1, 2) ± its standard error, of the test images" in caption(run(), run(seed=2))
    assert "One run, with seed 1. ± is the standard error that the choice of test images makes" in caption(run())
    assert "± its standard error over them, s / √n." in caption(run(images=None), run(seed=2, images=None))
    assert "±" not in caption(run(images=None))
    assert "± is of the seeds alone" in caption(
        run(), run(seed=2), run("vpt", images=None), run("vpt", seed=2, images=None)
    )
    several = run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, tested_images={"base": 100, "new": 200})
    cell = tables(summarize([several]))[0].rows[0]
    errors = [np.sqrt(80 * 20 / 100), np.sqrt(60 * 40 / 200)]
    assert [one.spread for one in cell[1:3]] == [f"± {error:.1f}" for error in errors]
    assert cell[3].spread == f"± {harmonic_error(80, 60, tuple(errors)):.1f}"


def test_chosen_rates_have_a_table_and_a_sentence():
    def choice(*tried):
        return {
            "for": "method",
            "cells": 2,
            "tried": [dict(zip(("learning_rate", "accuracy"), x, strict=True)) for x in tried],
        }

    rows = [
        run(learning_rate=0.2, choice=choice((0.1, 70.0), (0.2, 75.0), (0.4, None))),
        run(dataset="b", learning_rate=0.2, choice=choice((0.1, 70.0), (0.2, 75.0), (0.4, None))),
        run("vpt", learning_rate=0.1, choice=choice((0.1, 71.0), (0.2, 70.0))),
        run("zero_shot", shots=0, learning_rate=None),
    ]
    made = tables(summarize(rows))
    (table,) = (one for one in made if one.title == "Learning rates")
    assert table.columns == ("Method", "Chosen", "0.1", "0.2", "0.4")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["VPT", "0.1", "71.0", "70.0", "–"],
        ["Bias tuning", "0.2", "70.0", "75.0", "failed"],
    ]
    assert [[cell.rank for cell in row] for row in table.rows] == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert "Learning rate, chosen on validation images: 0.1 of VPT; 0.2 of Bias tuning." in made[0].caption
    by_cell = [{**row, "choice": {**row["choice"], "for": "cell"}} for row in rows[:2]]
    (table,) = (one for one in tables(summarize(by_cell)) if one.title == "Learning rates")
    assert table.columns[:4] == ("Method", "Dataset", "Shots", "Chosen") and len(table.rows) == 2
    given = [run(learning_rate=0.2), run("vpt", learning_rate=0.1)]  # by a file of rates
    assert "Learning rate: 0.1 of VPT; 0.2 of Bias tuning." in tables(summarize(given))[0].caption
