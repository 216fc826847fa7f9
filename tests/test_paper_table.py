"""What docs/paper.md is made of: observations as a CSV, and Table 1's observation from a sweep's rows."""

import math

import numpy as np

from clipbias.analysis.observations import ClaimOutcome
from clipbias.report import read_sweep
from tools.paper_table import bias_above_prompts


def rows_of(accuracies: dict[str, list[float]], dataset: str = "demo/digits") -> list[dict[str, object]]:
    return [
        {"method": method, "dataset": dataset, "shots": 16, "seed": seed, "accuracy": value, "images": 200}
        for method, values in accuracies.items()
        for seed, value in enumerate(values, start=1)
    ]


def test_a_bias_against_prompts_of_as_many_numbers(tmp_path):
    accuracies = {"zero_shot": [50.0], "bias": [62.0, 66.0], "ivlp_matched": [56.0, 57.0]}
    (row,) = bias_above_prompts(read_sweep(rows_of(accuracies)))
    # Without predictions images count as if each method had its own.
    variances = [0.64 * 0.36 / 200, 0.565 * 0.435 / 200, *(np.var([0.62, 0.66], ddof=1) / 2,)]
    error = 100 * math.sqrt(sum(variances) + np.var([0.56, 0.57], ddof=1) / 2)
    assert (row.source, row.unit, row.samples) == ("Table 1", "points", 200)
    np.testing.assert_allclose(
        (row.number.value, row.number.low, row.number.high),
        (7.5, 7.5 - 1.959963984540054 * error, 7.5 + 1.959963984540054 * error),
        rtol=1e-9,
    )
    assert row.outcome is ClaimOutcome.UNDECIDED and row.number.low < 0
    more = rows_of({"bias": [70.0, 70.0], "ivlp_matched": [50.0, 50.0]}, "demo/emoji")
    less = rows_of({"bias": [50.0, 50.0], "ivlp_matched": [70.0, 70.0]}, "demo/fashion")
    outcomes = [each.outcome for each in bias_above_prompts(read_sweep([*more, *less]))]
    assert sorted(each.value for each in outcomes) == ["does not", "holds"]
    assert bias_above_prompts(read_sweep(rows_of({"bias": [60.0]}))) == ()


def test_test_images_are_compared_in_pairs(tmp_path):
    """Two methods that are right on nearly the same images differ more surely than their accuracies say."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, 200)
    right = {"ivlp_matched": draw.random(200) < 0.5}
    right["bias"] = right["ivlp_matched"] | (np.arange(200) % 20 == 0)
    lines = []
    for method, is_right in right.items():
        predicted = np.where(is_right, labels, (labels + 1) % 5)
        np.savez(tmp_path / f"{method}.npz", predicted=predicted, labels=labels, images=np.arange(200))
        (line,) = rows_of({method: [100 * is_right.mean()]})
        lines.append(line | {"predictions": {"test": method}})
    (row,) = bias_above_prompts(read_sweep(lines, tmp_path))
    differences = right["bias"].astype(float) - right["ivlp_matched"]
    half = 1.959963984540054 * 100 * differences.std(ddof=1) / math.sqrt(200)
    middle = 100 * differences.mean()
    np.testing.assert_allclose((row.number.low, row.number.high), (middle - half, middle + half), rtol=1e-9)
