"""What a study's files give back is what was written, array by array."""

import dataclasses
import json

import numpy as np
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.results_file import SCALARS, load_results, save_results
from tests.report.synthetic import synthetic_results


def assert_same(written, read, place):
    """Equal to the last bit, of the same types."""
    assert type(written) is type(read) or isinstance(written, np.ndarray), place
    if dataclasses.is_dataclass(written):
        for field in dataclasses.fields(written):
            assert_same(getattr(written, field.name), getattr(read, field.name), f"{place}/{field.name}")
    elif isinstance(written, dict):
        assert list(written) == list(read), place
        for key, value in written.items():
            assert_same(value, read[key], f"{place}/{key}")
    elif isinstance(written, np.ndarray):
        assert written.dtype == read.dtype, place
        np.testing.assert_array_equal(written, read, err_msg=place)
    else:
        assert written == read, place


@pytest.mark.parametrize("twins", [False, True])
def test_saved_results_come_back(tmp_path, twins):
    results = synthetic_results(pictures=1, twins=twins)
    save_results(tmp_path, results)
    assert_same(dataclasses.replace(results, config={}), dataclasses.replace(load_results(tmp_path), config={}), "")


def test_what_is_no_number_stays_none(tmp_path):
    """JSON has no NaN."""
    results = synthetic_results(pictures=1)
    save_results(tmp_path, dataclasses.replace(results, seconds=float("nan")))
    assert np.isnan(load_results(tmp_path).seconds)


@pytest.mark.parametrize(("place", "value"), [("clip/patches", 7), ("dataset/name", "other"), ("models", [])])
def test_an_edited_file_is_refused(tmp_path, place, value):
    save_results(tmp_path, synthetic_results(pictures=1))
    content = json.loads((tmp_path / SCALARS).read_text())
    inside = content
    *parents, last = place.split("/")
    for parent in parents:
        inside = inside[parent]
    inside[last] = value
    (tmp_path / SCALARS).write_text(json.dumps(content))
    with pytest.raises(ClipbiasError, match=rf"^{tmp_path}/results\.json is not as it was written; "):
        load_results(tmp_path)
