import json

import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results import ARRAYS, FORMAT, SCALARS, Findings, load_results, save_arrays, save_results


def test_saved_results_come_back(tmp_path):
    arrays = {"a/b/mean": np.arange(3.0), "images": np.zeros((1, 2, 2, 3), np.uint8)}
    scalars = {"format": FORMAT, "x": {"y": np.float32(0.5), "z": (1, np.int64(2)), "missing": np.nan}}
    save_results(tmp_path, Findings(arrays, scalars))
    found = load_results(tmp_path)
    assert found.scalars == {"format": FORMAT, "x": {"y": 0.5, "z": [1, 2], "missing": None}}
    np.testing.assert_array_equal(found.arrays["a/b/mean"], arrays["a/b/mean"])
    assert found.arrays["images"].dtype == np.uint8
    assert list(found.under("a/")) == ["a/b/mean"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / SCALARS).unlink(), "holds no results.json"),
        (lambda folder: (folder / SCALARS).write_text("{"), "results.json is not a study's results"),
        (lambda folder: (folder / SCALARS).write_text("[1]"), "results.json is not a study's results"),
        (lambda folder: (folder / SCALARS).write_text(json.dumps({"format": 99})), "has format 99"),
        (lambda folder: (folder / ARRAYS).write_bytes(b"PK"), "results.npz is damaged"),
        # As a process leaves it that was killed before it wrote the other file.
        (lambda folder: save_arrays(folder / ARRAYS, {"x": np.ones(2)}), "or of another study than results.json"),
    ],
)
def test_refuses_what_it_cannot_read(tmp_path, damage, message):
    save_results(tmp_path, Findings({"x": np.zeros(2)}, {"format": FORMAT}))
    damage(tmp_path)
    with pytest.raises(ClipbiasError, match=message):
        load_results(tmp_path)
