"""Checks of a user's values: each returns the value, or raises a sentence with the allowed values."""

import contextlib
import dataclasses
import difflib
import math
import numbers
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from clipbias.errors import ClipbiasError
from clipbias.io import shorten

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number beside its type, as in `Annotated[int, Range(1, 1000)]`."""

    lowest: float = -math.inf
    highest: float = math.inf


Count = Annotated[int, Range(0, LARGEST)]
Positive = Annotated[int, Range(1, LARGEST)]


@dataclasses.dataclass(frozen=True)
class Choices:
    """The strings that are allowed, as in `Annotated[str, Choices(("sum", "mean"))]`."""

    allowed: tuple[str, ...]


def check_int(name: str, value: object, *, lowest: float = 0, highest: float = LARGEST) -> int:
    """A whole number from `lowest` to `highest`. Raises `ClipbiasError` for anything else."""
    # NumPy's integers are `Integral`, as is Python's True, which is a mistake here.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not lowest <= int(value) <= highest:
        limits = "" if math.isinf(lowest) or math.isinf(highest) else f" from {lowest:,} to {highest:,}"
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a whole number{limits}.")
    return int(value)


def check_number(name: str, value: Any, *, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """A finite number from `lowest` to `highest`. Raises `ClipbiasError` for anything else."""
    # `bool` is a `Real` in Python, but True is a mistake where a number is expected.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # A larger whole number has no finite value in floating point.
    if not is_number or not abs(value) <= sys.float_info.max or not lowest <= value <= highest:
        limits = [f" of at least {lowest:g}"] if lowest > -math.inf else []
        limits += [f" of at most {highest:g}"] if highest < math.inf else []
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a finite number{' and'.join(limits)}.")
    return value


def check_text(name: str, value: object) -> str:
    """A string. Raises `ClipbiasError` for anything else."""
    if not isinstance(value, str):
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a string.")
    return value


def check_class_names(value: object) -> None:
    """Raises `ClipbiasError` for anything but an ordered collection of names."""
    # The order of a set of strings differs between processes, and labels count by order.
    if isinstance(value, str | Mapping | set | frozenset) or not isinstance(value, Iterable):
        raise ClipbiasError(f"class_names is {shown(value)}; give a list of names.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """A member of `choices`. Raises `ClipbiasError` for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise ClipbiasError(f"{name} is {shown(value)}; choose from {', '.join(choices)}.")
    return value


def check_value(name: str, value: object, kind: object) -> None:
    """Raises `ClipbiasError` for a value of another type than `kind`, or out of its `Range` or `Choices`."""
    # Types are `bool`, `int`, `float`, `str`, classes, `tuple[X, …]`, `list[X]`, `dict[str, X]` and unions of these.
    # Annotations of other kinds accept every value.
    # `Annotated` is unpacked first, so that bounds also apply inside unions and lists, which call this again.
    limits: object = None
    if get_origin(kind) is Annotated:
        kind, limits, *_ = get_args(kind)
    origin = get_origin(kind)
    bounds = limits if isinstance(limits, Range) else Range()
    if kind is bool and not isinstance(value, bool):
        raise ClipbiasError(f"{name} is {shown(value)}; it must be True or False.")
    if kind is int:
        check_int(name, value, lowest=bounds.lowest, highest=bounds.highest)
    elif kind is float:
        check_number(name, value, lowest=bounds.lowest, highest=bounds.highest)
    elif kind is str and isinstance(limits, Choices):
        check_choice(name, value, limits.allowed)
    elif kind is str:
        check_text(name, value)
    elif origin in (types.UnionType, Union):
        _check_union(name, value, kind)
    elif origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ClipbiasError(f"{name} is {shown(value)}; it must be a list.")
        inner = get_args(kind)
        for item in value if inner[1:] in ((...,), ()) else ():
            check_value(name, item, inner[0])
    elif origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ClipbiasError(f"{name} is {shown(value)}; it must hold values by name.")
        for key, item in value.items():
            check_value(f"{name}[{shown(key)}]", item, get_args(kind)[1])
    elif isinstance(kind, type) and kind is not Any and not isinstance(value, kind):
        raise ClipbiasError(f"{name} is {shown(value)}; it must be of type {kind.__name__}.")


def _check_union(name: str, value: object, kind: object) -> None:
    # Of `X | None` the message is that of X, with "or None". An empty string is refused, since users may mean `None`.
    parts = get_args(kind)
    others = [part for part in parts if part is not type(None)]
    if len(parts) != 2 or len(others) != 1:
        for part in parts:
            with contextlib.suppress(ClipbiasError):
                check_value("", value, part)
                return
        raise ClipbiasError(f"{name} is {shown(value)}; it must be of type {kind}.")
    if value is None:
        return
    if isinstance(value, str) and not value:
        raise ClipbiasError(f"{name} is {shown(value)}; it must be a non-empty string, or None.")
    try:
        check_value(name, value, others[0])
    except ClipbiasError as error:
        raise ClipbiasError(f"{str(error).removesuffix('.')}, or None.") from None


def check_fields(instance: "DataclassInstance") -> None:
    """Checks every field of a dataclass by its annotation. Raises `ClipbiasError` for the first wrong value."""
    kinds = annotations(type(instance))
    for field in dataclasses.fields(instance):
        check_value(field.name, getattr(instance, field.name), kinds.get(field.name))


def annotations(kind: type) -> dict[str, Any]:
    """The annotations of a class; empty if a name in them exists only for type checkers."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {}


def plain_type(kind: object) -> type:
    """`float` of `float | None`, `tuple` of `tuple[str, ...] | None`, `object` if no type is known."""
    parts = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    for part in parts:
        base = get_args(part)[0] if get_origin(part) is Annotated else part
        base = get_origin(base) or base
        if isinstance(base, type) and base is not type(None):
            return base
    return object


def as_annotated(value: Any, kind: object) -> Any:
    """A checked value in its annotated type: a whole number as a float where it is one, a list as a tuple."""
    # JSON and command lines know no tuples, and a list in a frozen dataclass could not be hashed.
    base = plain_type(kind)
    if value is None or base not in (float, tuple):
        return value
    if base is float:
        return float(value)
    parts = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    inner = get_args(parts[0])
    return tuple(as_annotated(item, inner[0]) for item in value) if inner else tuple(value)


def meant(name: str, known: Collection[str]) -> str | None:
    """The known name of which another is a misspelling ("CLIP-LoRA"), the initials ("lr") or a part; else `None`."""
    # A misspelling is likelier than initials or a part of a name.
    by_letters = {_letters(each): each for each in known}
    if close := difflib.get_close_matches(_letters(_TAKEN.get(name, name)), by_letters, 1):
        return by_letters[close[0]]
    words = {*name.split("_")}
    parts = {each: each.split("_") for each in known}
    return next((each for each in known if words & {*parts[each], "".join(part[:1] for part in parts[each])}), None)


# Names of other libraries that are not spelled like ours.
_TAKEN = {"random_state": "seed", "random_seed": "seed", "steps": "epochs"}


def _letters(name: str) -> str:
    """Returns a name as it is spelled aloud: "Tip-Adapter-F" as "tipadapterf", "LP++" as "lpplusplus"."""
    return re.sub(r"[\W_]", "", name.replace("+", "plus")).casefold()


def shown(value: object) -> str:
    """A value as a message quotes it: not more than a line of it."""
    # Python refuses to write out a whole number of more than 4300 digits.
    if isinstance(value, int) and abs(value) >= 10**60:
        return f"a whole number of {value.bit_length():,} bits"
    return shorten(repr(value))
