"""Intervals of what a study measured beside its causal test, against plain formulas over its arrays."""

import math

import numpy as np
import pytest

from clipbias.explain.measured import measured
from tests.report.synthetic import synthetic_results


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1)


def ends(row):
    """Half of the interval, which lies around the value."""
    assert row.value - row.low == pytest.approx(row.high - row.value)
    return row.high - row.value


def reach(values):
    """1.96 standard errors of the mean of values."""
    mean = sum(values) / len(values)
    return 1.959964 * math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values))


def test_every_number_has_an_interval(results):
    for key in ("ivlp", "bias"):
        rows = measured(results, key)
        assert rows and all(row.low < row.value < row.high for row in rows)


def test_changes_are_paired_image_by_image(results):
    for key, variant in (("ivlp", "without_prompt"), ("bias", "clip")):
        rows = {row.name: row for row in measured(results, key)}
        for quantity in ("distance", "entropy"):
            before, after = (
                results.arrays[f"vision_attention/{path}/{quantity}/each"].tolist()
                for path in ("zero_shot/clip", f"{key}/{variant}")
            )
            changes = [b - a for a, b in zip(before, after, strict=True)]
            assert ends(rows[f"{quantity}_change"]) == pytest.approx(reach(changes))


def test_images_that_were_not_looked_at_do_not_count(results):
    arrays = {name: value.copy() for name, value in results.arrays.items()}
    arrays["vision_attention/ivlp/without_prompt/distance/each"][::2] = np.nan
    (row,) = [row for row in measured(type(results)(arrays, results.scalars), "ivlp") if row.name == "distance_change"]
    changes = (
        arrays["vision_attention/ivlp/without_prompt/distance/each"]
        - arrays["vision_attention/zero_shot/clip/distance/each"]
    )
    assert ends(row) == pytest.approx(reach(changes[1::2].tolist()))


def test_prompts_and_constancy(results):
    rows = {row.name: row for row in measured(results, "ivlp")}
    for tower in ("vision", "text"):
        each = results.arrays[f"decomposition/ivlp/{tower}/prompt_mass/each"].tolist()
        assert ends(rows[f"prompt_mass_{tower}"]) == pytest.approx(reach(each))
        errors = results.scalars["decomposition"]["ivlp"][tower]["error"]
        for name, row in (
            ("constancy", "constancy"),
            ("bias_likeness", "bias_likeness"),
            ("bias_cosine/bias", "bias_cosine"),
        ):
            row = rows[f"{row}_{tower}_bias" if row == "bias_cosine" else f"{row}_{tower}"]
            assert ends(row) == pytest.approx(1.959964 * errors[name])


def test_an_older_study_has_no_such_intervals(results):
    arrays = {
        name: value for name, value in results.arrays.items() if not name.endswith("/each") and "/error/" not in name
    }
    scalars = {**results.scalars, "decomposition": {"ivlp": {tower: {"count": 3} for tower in ("vision", "text")}}}
    rows = {row.name: row for row in measured(type(results)(arrays, scalars), "ivlp")}
    for name in ("distance_change", "prompt_mass_vision", "constancy_text", "bias_cosine_vision_bias"):
        assert rows[name].low is rows[name].high is None
