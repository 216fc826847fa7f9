"""Collectives of a compiled program, read from its text."""

import re
from collections import defaultdict

import numpy as np

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(f32|bf16|s32|u8|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BYTES = {"f32": 4, "s32": 4, "bf16": 2, "u8": 1, "pred": 1}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """How often each kind of collective runs, the bytes of its results on one device, and how many stand in loops.

    What stands in the body of a loop counts as often as the loop runs (once where the compiler does not know).
    """
    lines: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line.strip()):
            name = header[2]
            entry = name if header[1] else entry
        else:
            lines[name].append(line)
    found: dict[str, dict[str, int]] = {}

    def visit(name: str, times: int, looped: bool) -> None:
        for line in lines[name]:
            if match := _COLLECTIVE.search(line):
                kind = found.setdefault(match[2], {"count": 0, "bytes": 0, "in_loops": 0})
                kind["count"] += times
                kind["in_loops"] += looped
                kind["bytes"] += times * sum(
                    _BYTES[dtype] * int(np.prod([int(n) for n in dimensions.split(",") if n], dtype=np.int64))
                    for dtype, dimensions in _SHAPE.findall(match[1])
                )
            loop = " while(" in line
            trips = int(match[1]) if loop and (match := _TRIPS.search(line)) else 1
            for called in _CALLED.findall(line):
                for other in called.replace("%", "").split(", "):
                    visit(other, times * trips, looped or loop)

    visit(entry, 1, False)
    return found
