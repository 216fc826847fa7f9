"""What is said to be missing before anything is trained."""

import numpy as np
import pytest

from clipbias import data
from clipbias.data.dataset import Dataset, Split
from clipbias.data.sources import describe_missing, open_datasets
from clipbias.errors import ClipbiasError
from tests.data.pictures import write


def dataset_of(name: str, **labels: list[int]) -> Dataset:
    splits = {
        split: Split([f"{split}/{number}" for number in range(len(numbers))], np.array(numbers, int), lambda index: b"")
        for split, numbers in labels.items()
    }
    return Dataset(name, tuple("abcdefg"), "a {}.", splits)


def test_two_images_in_all_leave_none_to_evaluate_on(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / name / "1.png")
    message = describe_missing(data.load("folder", data_dir=tmp_path), trains=True)
    assert message == "folder has no test images to evaluate on (it has train: cat 1, dog 1); add some."


def test_what_is_needed_depends_on_what_is_done():
    assert describe_missing(dataset_of("x", train=[0], test=[1]), trains=True) is None
    evaluated = dataset_of("x", test=[0, 1, 2, 3, 4, 5, 5])
    assert describe_missing(evaluated, trains=False) is None
    message = describe_missing(evaluated, trains=True)
    assert message == (
        "x has no train images to train on (it has test: a 1, b 1, c 1, d 1, e 1 and 1 more classes); add some."
    )
    assert "(it has no image)" in describe_missing(dataset_of("x", train=[]), trains=True)


def test_all_that_is_wrong_is_said_at_once_or_left_out(caplog):
    there = {"whole": dataset_of("whole", train=[0], test=[1]), "cut": dataset_of("cut", train=[0])}

    def load(name):
        if name not in there:
            raise ClipbiasError(f"{name}: there is no folder /data/{name}; check data_dir.")
        return there[name]

    requests = {"whole": True, "cut": True, "gone": False}
    with pytest.raises(ClipbiasError) as raised:
        open_datasets(load, requests)
    first, second, last = str(raised.value).splitlines()
    assert "cut has no test images" in first and "no folder /data/gone" in second
    assert last == "No run was started. Fix it, or pass --config.on_missing=skip."
    assert list(open_datasets(load, requests, skip=True)) == ["whole"]
    assert caplog.text.count("Left out: ") == 2
    with pytest.raises(ClipbiasError, match=r"No run was started\. Fix it\.$"):
        open_datasets(load, {"gone": False}, skip=True)
