"""Checks of single values that come from a user: each returns the value, or says in one sentence what it must be."""

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.files import shorten

LARGEST = 2**31 - 1


def whole(name: str, value: Any, *, lowest: int = 0, highest: int = LARGEST) -> int:
    """A whole number from `lowest` to `highest`. Raises `ClipbiasError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not lowest <= int(value) <= highest:
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a whole number from {lowest:,} to {highest:,}.")
    return int(value)


def number(name: str, value: Any, *, lowest: float = -math.inf) -> float:
    """A finite number that is not below `lowest`. Raises `ClipbiasError` for anything else."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Beyond this a whole number has no finite equal among floating-point numbers.
    if not is_number or not abs(value) <= sys.float_info.max or not value >= lowest:
        limit = f" of at least {lowest:g}" if lowest > -math.inf else ""
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a finite number{limit}.")
    return value


def text(name: str, value: Any) -> str:
    """A text. Raises `ClipbiasError` for anything else."""
    if not isinstance(value, str):
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a text.")
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts. Raises `ClipbiasError` for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a list of texts.")
    return tuple(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of `choices`. Raises `ClipbiasError` for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise ClipbiasError(f"{name} is {shown(value)}; choose from {', '.join(choices)}.")
    return value


def shown(value: Any) -> str:
    """A value as a message quotes it: not more than a line of it."""
    # Python refuses to write out a whole number of more than 4300 digits.
    if isinstance(value, int) and abs(value) >= 10**60:
        return f"a whole number of {value.bit_length():,} bits"
    return shorten(repr(value))
