"""The table of confirmatory conclusions against the studies' arrays, and over how many conclusions it corrects."""

import dataclasses

import numpy as np
import pytest

from clipbias.explain.results import EndpointTest
from clipbias.explain.uncertainty import Estimate
from clipbias.report.endpoint_table import endpoint_table
from tests.report import recomputed
from tests.report.synthetic import synthetic_results


@pytest.fixture(scope="module")
def study():
    return synthetic_results(pictures=1, twins=True)


def with_p(study, p, gain=None):
    """A study whose only cell has other p-values."""
    (cell,) = study.factorial.cells
    number = Estimate(0.1, 0.05, 0.2)
    tests = tuple(EndpointTest(name, number, number, x) for name, x in p.items())
    cells = (dataclasses.replace(cell, tests=tests, gain=gain or cell.gain),)
    return dataclasses.replace(study, factorial=dataclasses.replace(study.factorial, cells=cells))


def test_the_row_of_a_method_is_what_the_arrays_say(study):
    keys = ["ivlp", "ivlp_seed2"]
    above = {}
    for outcome in ("calibrated", "accuracy"):
        each = [recomputed.mixture_outcomes(study, key, outcome, "both") for key in keys]
        streams = list(each[0])
        by_name = recomputed.by_name(streams, [np.stack(list(mixture.values()), 1) for mixture in each], outcome)
        gain = by_name["PPP"] - by_name["RRR"]
        above[outcome] = by_name["RPP"] - by_name["RRR"] - gain / 2
        if outcome == "calibrated":
            gains = recomputed.number(gain)
    ((dataset, label, part, *numbers),) = endpoint_table([study]).rows
    assert (dataset, label, part) == ("demo/digits", "IVLP, 2 seeds", "tokens alone")
    p = (1 + (above["calibrated"][1:] <= 0).sum()) / 2001
    form = "{:+.3f} ({:+.3f} to {:+.3f})"
    calibrated = recomputed.number(above["calibrated"])
    points = recomputed.number(above["accuracy"])
    shown = "shown" if p <= 0.05 else "not shown"
    assert numbers == [
        form.format(*recomputed.ends(gains)),
        form.format(*recomputed.ends(calibrated)),
        f"{p:.4f}",
        f"{p:.4f}",
        shown if gains["low"] > 0 else "no gain",
        form.replace("3f", "1f").format(*recomputed.ends(points)),
    ]


def test_holms_correction_goes_over_all_studies(study):
    sure = Estimate(0.3, 0.2, 0.4)
    first = with_p(study, {"tokens alone": 0.00004, "constant": 0.03}, sure)
    other = with_p(study, {"tokens alone": 0.02, "constant": 0.5}, Estimate(0.1, -0.1, 0.2))
    alone = endpoint_table([first])
    assert [row[5:8] for row in alone.rows] == [("< 0.0001", "< 0.0001", "shown"), ("0.0300", "0.0300", "shown")]
    assert "over all 2 conclusions" in alone.caption
    both = endpoint_table([first, other])
    assert [row[6:8] for row in both.rows] == [
        ("0.0002", "shown"),
        ("0.0600", "not shown"),
        ("0.0600", "no gain"),
        ("0.5000", "no gain"),
    ]
    assert "over all 4 conclusions" in both.caption and "20,000 resamples" in both.caption


def test_no_table_without_conclusions(study):
    assert endpoint_table([]) is None
    assert endpoint_table([dataclasses.replace(study, factorial=None)]) is None
