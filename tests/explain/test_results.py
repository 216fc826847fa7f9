import numpy as np

from clipbias.explain.results import FORMAT, Findings, load_results, save_results


def test_saved_results_come_back(tmp_path):
    arrays = {"a/b/mean": np.arange(3.0), "images": np.zeros((1, 2, 2, 3), np.uint8)}
    scalars = {"format": FORMAT, "x": {"y": np.float32(0.5), "z": (1, np.int64(2)), "missing": np.nan}}
    save_results(tmp_path, Findings(arrays, scalars))
    found = load_results(tmp_path)
    assert found.scalars == {"format": FORMAT, "x": {"y": 0.5, "z": [1, 2], "missing": None}}
    np.testing.assert_array_equal(found.arrays["a/b/mean"], arrays["a/b/mean"])
    assert found.arrays["images"].dtype == np.uint8
    assert list(found.under("a/")) == ["a/b/mean"]
