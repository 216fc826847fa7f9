"""A disk that breaks at one of a command's writes: one sentence, and nothing half-made (`tools/disturb.py`).

A small library in C, preloaded into the command, stands in for the disk: it counts the system calls that write below a
folder, by whatever library they are made, and from a given one on lets all of them fail. It needs Linux and a C
compiler.
"""

import errno
import itertools
import random
import struct
import subprocess
import sys
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import PART
from tools.disturb import Trials

SOURCE = Path(__file__).with_name("faults.c")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
# Seconds in which a command whose disk breaks must end.
LIMIT = 180.0


def build(folder: Path) -> Path:
    """Compiles the library. Raises `ClipbiasError` where there is no compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "faults.so"
    try:
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ClipbiasError("no C compiler `cc`, which a disk that breaks needs; install one.") from error
    if done.returncode:
        raise ClipbiasError(f"{SOURCE} cannot be compiled: {done.stderr.strip()[-300:]}")
    return library


def environment_of(library: Path, disk: Path, *, at: int = 0, number: int = errno.EIO) -> dict[str, str]:
    """What a command is started with so that from its write `at` on, counted from 1, the disk fails; 0: never."""
    counter = library.with_name("counter")
    counter.write_bytes(bytes(8))
    return {
        "LD_PRELOAD": str(library),
        "FAULT_FOLDER": str(disk),
        "FAULT_AT": str(at),
        "FAULT_ERRNO": str(number),
        "FAULT_COUNTER": str(counter),
    }


def writes(library: Path) -> int:
    """How many system calls the last command wrote with."""
    return struct.unpack("q", library.with_name("counter").read_bytes())[0]


def half_made(folder: Path) -> list[str]:
    """Files and folders below that were not finished."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.name.startswith((PART, ".tmp"))
        or (path.name.startswith(".") and path.name.endswith(".unfinished"))
        or ".orbax-checkpoint-tmp" in path.name
    ]


def disturb(trials: Trials, times: int, moments: random.Random) -> list[str]:
    """Runs a command with a disk that breaks, so many times; returns what is wrong, which should be nothing.

    The writes at which it breaks are spread over those of an undisturbed run. Two runs may differ by a few writes: one
    that ends before its disk breaks says nothing, and is tried again with an earlier one. Arguments as in
    `tools.disturb.disturb`.
    """
    library, count = _prepare(trials)
    problems, missed = [], 0
    for index, number in zip(range(times), itertools.cycle(ERRORS), strict=False):
        at = 1 + int((index + moments.random()) * count / times)
        while True:
            reached, found = _break(trials, library, f"broken{index + missed}", at, number)
            problems += found
            if reached:
                break
            at, missed = max(1, int(moments.uniform(0.5, 1.0) * writes(library))), missed + 1
    return problems


def disturb_each(trials: Trials, times: int, moments: random.Random) -> list[str]:
    """The same at every write in turn, from the first to the last, so many times over."""
    library, count = _prepare(trials)
    kinds, problems = itertools.cycle(ERRORS), []
    for index in range(times * count):
        problems += _break(trials, library, f"broken{index}", 1 + index % count, next(kinds))[1]
    return problems


def _prepare(trials: Trials) -> tuple[Path, int]:
    """The library, and how many system calls the undisturbed command writes with."""
    library = build(trials.work / "library")
    trials.run("whole", environment_of(library, trials.work / "whole"))
    count = writes(library)
    print(f"{trials.command.module}: {count} writes", file=sys.stderr)
    return library, count


def _break(trials: Trials, library: Path, out: str, at: int, number: int) -> tuple[bool, list[str]]:
    """Runs a command into `out` with a disk that breaks at one write, and then to its end.

    Returns:
      Whether there was such a write, and what is wrong.
    """
    failing = environment_of(library, trials.work / out, at=at, number=number)
    status, errors, waited = trials.interrupt(out, after=LIMIT, environment=failing)
    if status == 0 and writes(library) < at:
        return False, [f"{out}, whose disk was whole: {one}" for one in trials.differences(out)]
    where, problems = f"{errno.errorcode[number]} at write {at}", []
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    print(f"{trials.command.module}: {where}: status {status}, {' | '.join(told)}", file=sys.stderr)
    if waited:
        problems.append(f"{where}: it does not end, {errors[-1500:]!r}")
    elif status != 1 or len(told) != 1 or "Traceback" in errors:
        problems.append(f"{where}: status {status}, {errors[-1500:]!r}")
    if left := half_made(trials.work / out):
        problems.append(f"{where}: left {', '.join(left)}")
    if trials.differences(out):  # else it had written all that counts
        trials.run(out)
    return True, problems + [f"{where}: {one}" for one in trials.differences(out)]
