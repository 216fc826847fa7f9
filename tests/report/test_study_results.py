"""Reading results for drawing."""

import numpy as np
import pytest

from clipbias.report.study_results import StudyResults, counted, file_name
from tests.report.synthetic import synthetic_results


def test_models_counts_and_missing_parts():
    study = StudyResults(synthetic_results())
    assert study.zero_shot["key"] == "zero_shot"
    assert [model["key"] for model in study.tuned] == ["ivlp", "bias"]
    assert study.grid == (3, 3)
    assert study.count("relevancy", "ivlp", "corrected") == 27
    assert study.count("relevancy", "nobody") is None
    assert study.average("nothing") is None and study.array("nothing") is None


def test_an_average_without_an_error_has_nan_errors():
    results = synthetic_results()
    del results.arrays["relevancy/ivlp/corrected/order/standard_error"]
    average = StudyResults(results).average("relevancy/ivlp/corrected/order")
    assert np.isnan(average.standard_error).all() and average.mean.shape == (1,)


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [(1, "image", "1 image"), (1200, "image", "1,200 images"), (2, "class", "2 classes"), (0, "image", "0 images")],
)
def test_counts_in_words(number, thing, text):
    assert counted(number, thing) == text


def test_file_names_are_plain():
    assert file_name("demo/digits <x>") == "demo_digits_x"
    assert file_name("../") == "unnamed"
