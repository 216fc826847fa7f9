"""One check for every kind of annotation: what it lets pass, and how it refuses; and parts of sentences."""

import dataclasses
from typing import Annotated, Any, Optional

import numpy as np
import pytest

from clipbias.checks import Choices, Range, check_fields, check_value
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted

COUNT = Annotated[int, Range(1, 1000)]
CHOICE = Annotated[str, Choices(("sum", "mean"))]


@pytest.mark.parametrize(
    ("kind", "accepted", "refused", "message"),
    [
        (bool, [True, False], [1, "True", None], "it must be True or False"),
        (int, [-1, 10**30, np.int64(3)], [True, 1.0, "1", None], r"it must be a whole number\."),
        (COUNT, [1, 1000], [0, 1001, True, 2.0], "it must be a whole number from 1 to 1,000"),
        (float, [1, -0.5, np.float64(2)], [True, float("inf"), float("nan"), 10**400, "1"], r"a finite number\."),
        (Annotated[float, Range(0, 1)], [0, 1], [-0.1, 1.1], "of at least 0 and of at most 1"),
        (str, ["", "a"], [1, None, ("a",)], "it must be a string"),
        (CHOICE, ["sum"], ["max", 1], "choose from sum, mean"),
        (tuple[int, ...], [(), (1, 2), [3]], [1, "12"], "it must be a list"),
        (tuple[COUNT, ...], [(1,)], [(1, 0), ("a",)], "a whole number from 1 to 1,000"),
        (int | str, [1, "a"], [1.5, None], r"it must be of type int \| str"),
        (Optional[COUNT], [None, 5], [0, "a"], "it must be a whole number from 1 to 1,000"),  # noqa: UP045 (the older spelling counts too)
        (str | tuple[str, ...], ["a", ("a", "b")], [("a", 1), 5], "it must be of type"),
        (dict, [{}], [()], "it must be of type dict"),
        (Any, [1, None, object()], [], ""),
    ],
)
def test_values(kind, accepted, refused, message):
    for value in accepted:
        check_value("it", value, kind)
    for value in refused:
        with pytest.raises(ClipbiasError, match=rf"^it is .*{message}"):
            check_value("it", value, kind)


def test_fields_of_a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Options:
        size: COUNT = 1
        unknown: "DefinedNowhere" = None  # noqa: F821

        def __post_init__(self) -> None:
            check_fields(self)

    assert Options(size=0)  # its annotations cannot be read, so nothing is known of its values
    Options.__annotations__.pop("unknown")
    with pytest.raises(ClipbiasError, match="size is 0; it must be a whole number from 1"):
        Options(size=0)


def test_counts():
    things = ((1, "image"), (1200, "image"), (2, "class"), (2, "batch"), (17, "epoch"), (0, "step"))
    shown = ["1 image", "1,200 images", "2 classes", "2 batches", "17 epochs", "0 steps"]
    assert [counted(number, thing) for number, thing in things] == shown
