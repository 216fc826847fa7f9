"""What devices exchange in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections.abc import Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_EXCHANGE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_BODY = re.compile(r"body=%?([\w.-]+)")
_SHAPE = re.compile(r"([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_NAME = re.compile(r"%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One exchange of a program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of its result on each device.
      looped: whether it lies in a loop, and so may happen many times.
    """

    kind: str
    bytes: int
    looped: bool


def exchanges(program: str) -> list[Exchange]:
    """The exchanges in the text of a compiled program (`compiled.as_text()`), in its order."""
    computations = _computations(program)
    bodies = {name for lines in computations.values() for line in lines for name in _BODY.findall(line)}
    looped = _reached(computations, bodies)
    found = []
    for name, lines in computations.items():
        for line in lines:
            if match := _EXCHANGE.search(line):
                result, kind, starts = match.groups()
                found.append(Exchange(kind, _result_bytes(result, kind, starts is not None), name in looped))
    return found


def _computations(program: str) -> Mapping[str, list[str]]:
    """The lines of each computation by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found.setdefault(match[1], [])
        elif " = " in line:
            lines.append(line)
    return found


def _reached(computations: Mapping[str, list[str]], names: set[str]) -> set[str]:
    """These computations and all that they call."""
    reached: set[str] = set()
    waiting = [name for name in names if name in computations]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            called = [part for line in computations[name] for part in _CALLED.findall(line)]
            waiting += [one for part in called for one in _NAME.findall(part) if one in computations]
    return reached


def _result_bytes(result: str, kind: str, starts: bool) -> int:
    """Of a result such as `(f32[8,4]{1,0}, f32[])`. What starts some kinds gives back its operands before it."""
    sizes = [_bytes(*shape) for shape in _SHAPE.findall(result)]
    if starts and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :] if len(sizes) % 2 == 0 else sizes
    return sum(sizes)


def _bytes(kind: str, sizes: str) -> int:
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return math.prod(map(int, sizes.split(","))) * bits // 8 if sizes else bits // 8
