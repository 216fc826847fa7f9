"""The picture of depths: its numbers against a study's arrays."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import save_results
from clipbias.explain.uncertainty import Estimate
from tests.report import recomputed
from tests.report.recomputed import SHARES, ends
from tests.report.synthetic import only_sections, synthetic_results
from tools import draw_depth, study_pictures

pytestmark = pytest.mark.ci


def at_depth(study, layers):
    return dataclasses.replace(study, clip=dataclasses.replace(study.clip, vision_layers=layers))


def test_shares_by_depth(tmp_path, monkeypatch):
    studies = {}
    for layers, seed in ((4, 0), (8, 1)):
        studies[layers] = at_depth(synthetic_results(pictures=1, seed=seed), layers)
        save_results(tmp_path / f"study{layers}", studies[layers])
    monkeypatch.setattr(study_pictures, "TO", types.SimpleNamespace(value=str(tmp_path / "depth.png")))
    assert draw_depth.main([str(tmp_path)]) == 0
    numbers = pd.read_csv(tmp_path / "depth.csv").set_index(["method", "layers", "quantity"])
    quantities = 0
    for layers, study in studies.items():
        for method, key in (("IVLP", "ivlp"), ("Bias tuning", "bias")):
            gain = recomputed.effects(study, [key], "calibrated")["gain"]
            expected = recomputed.alone(study, [key], "calibrated") if gain["low"] > 0 else {}
            if method == "IVLP":
                added = recomputed.added(study, [key], "calibrated")
                shown = added.pop("all that is added")["low"] > 0
                expected |= added if shown else {}
            for name, number in expected.items():
                row = numbers.loc[(method, layers, name)]
                np.testing.assert_allclose(
                    row[["value", "low", "high"]].astype(float), ends(number, SHARES, 100), rtol=1e-4
                )
            quantities += len(expected)
    assert len(numbers) == quantities > 6
    figure = draw_depth.depth_figure(numbers.reset_index()).figure
    (line, *_) = figure.axes[0].containers
    first = numbers.loc[("IVLP", slice(None), "attention alone"), "value"]
    np.testing.assert_allclose(line.lines[0].get_xydata(), np.stack([[4, 8], first], 1), rtol=1e-6)


def test_a_share_needs_its_own_whole():
    """Without a sure gain only what is of all that is added has shares."""
    study = synthetic_results(pictures=1, seed=1)
    test = study.factorial.models["ivlp"]
    of_both = test.summary.towers["both"]
    unsure = dataclasses.replace(of_both, calibrated=dataclasses.replace(of_both.calibrated, gain=Estimate(0.1, -1, 1)))
    summary = dataclasses.replace(test.summary, towers={**test.summary.towers, "both": unsure})
    models = {**study.factorial.models, "ivlp": dataclasses.replace(test, summary=summary)}
    study = dataclasses.replace(study, factorial=dataclasses.replace(study.factorial, models=models))
    numbers = draw_depth.depth_numbers([study, at_depth(study, 12)])
    quantities = numbers.loc[numbers["method"] == "IVLP", "quantity"]
    assert list(quantities) == ["mean of what is added", "best constant"] * 2


def test_a_method_at_a_single_depth_is_left_out():
    study = synthetic_results(pictures=1, seed=1)
    models = {key: test for key, test in study.factorial.models.items() if key != "bias"}
    seeds = tuple(group for group in study.factorial.seeds if "bias" not in group.models)
    deep = dataclasses.replace(study, factorial=dataclasses.replace(study.factorial, models=models, seeds=seeds))
    assert set(draw_depth.depth_numbers([study, at_depth(study, 8)])["method"]) == {"IVLP", "Bias tuning"}
    assert set(draw_depth.depth_numbers([study, at_depth(deep, 8)])["method"]) == {"IVLP"}
    with pytest.raises(ClipbiasError, match="at several depths of the model"):
        draw_depth.depth_numbers([study, study])


def test_studies_without_a_causal_test(tmp_path):
    plain = only_sections(synthetic_results(pictures=1), "predictions")
    save_results(tmp_path / "plain", plain)
    with pytest.raises(ClipbiasError, match="at several depths of the model"):
        draw_depth.main([str(tmp_path / "plain")])
    with pytest.raises(ClipbiasError, match=r"give finished studies: python -m tools\.draw_depth"):
        draw_depth.main([])
