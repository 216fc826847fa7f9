"""The noise of fits, against the arrays of images."""

import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import save_results
from tests.explain.test_replacement_pooled import columns, result, study
from tools import fit_noise

pytestmark = pytest.mark.ci


def test_mean_and_deviation_over_fits(tmp_path, monkeypatch, capsys):
    fits = [result(400, seed) for seed in (1, 2, 3)]
    for number, fit in enumerate(fits):
        save_results(tmp_path / str(number), study("demo/digits", [fit]))
    monkeypatch.setattr(fit_noise, "TO", types.SimpleNamespace(value=str(tmp_path / "noise.csv")))
    assert fit_noise.main([str(tmp_path / str(number)) for number in range(3)]) == 0
    (row,) = pd.read_csv(tmp_path / "noise.csv").to_dict("records")
    assert (row["form"], row["fits"]) == ("kind", 3) and "kind" in capsys.readouterr().out
    arrays = [columns(fit) for fit in fits]
    measures = {
        "share": [each["gain fitted:kind"].mean() / each["gain"].mean() for each in arrays],
        "moved": [each["same fitted:kind"].sum() / each["moved"].sum() for each in arrays],
        "difference": [each["lost fitted:kind"].mean() for each in arrays],
    }
    for name, values in measures.items():
        mean = sum(values) / 3
        deviation = np.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        assert (row[f"{name}_mean"], row[f"{name}_sd"]) == pytest.approx((100 * mean, 100 * deviation), rel=1e-5)


def test_studies_without_a_common_adapter(tmp_path):
    one = study("demo/digits", [result(250, 3)])
    for studies in ([], [one], [one, study("demo/digits", [])]):
        with pytest.raises(ClipbiasError, match="no adapter was fitted in all of these"):
            fit_noise.fit_noise(studies)
