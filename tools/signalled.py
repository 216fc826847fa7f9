"""SIGINT and SIGTERM at random moments: a command ends soon, with its sentence, and continues (`tools/disturb.py`)."""

import itertools
import os
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from clipbias import interruption
from tools import disturb as disturbing

# Seconds from the signal to the end, on a machine with other work.
SOON, SOON_COMPILING = 10.0, 30.0
# Before this the interpreter itself starts, and a signal does to it what it does to any.
BEGIN = 0.3


def disturb(
    command: disturbing.Command,
    work: Path,
    model: str | os.PathLike,
    *,
    times: int,
    environment: Mapping[str, str] | None = None,
    moments: random.Random | None = None,
) -> list[str]:
    """Runs a command undisturbed and stopped so many times; returns what is wrong, which should be nothing.

    Arguments as in `tools.disturb.disturb`.
    """
    environment = {**os.environ, **(environment or {})}
    moments = moments or random.Random()
    names = disturbing.prepare(command, work, model, environment)
    first = disturbing.run(command.module, command.arguments, {**names, "out": work / "whole"}, environment)
    again = disturbing.run(command.module, command.arguments, {**names, "out": work / "again"}, environment)
    problems = disturbing.differences(work / "whole", work / "again")
    kinds = itertools.cycle(itertools.product((False, True), interruption.SIGNALS))
    stopped, folder, missed = 0, 0, 0
    while stopped < times and missed < 10 + times:
        empty, how = next(kinds)
        own = {**environment, "XDG_CACHE_HOME": str(work / "empty")} if empty else environment
        shutil.rmtree(work / "empty", ignore_errors=True)
        out = work / f"stopped{folder}"
        after = moments.uniform(BEGIN, max(first if empty else again, 2 * BEGIN))
        status, errors, took = disturbing.interrupt(
            command.module, command.arguments, {**names, "out": out}, own, after=after, how=how
        )
        said = errors.strip().splitlines()[-1:] or [""]
        if not took or status == 0 or (status == 1 and said[0].startswith("error: ") and "exists already" in said[0]):
            # It was faster: what it ended with counts, and the next one begins anew.
            problems += disturbing.differences(work / "whole", out)
            folder, missed = folder + 1, missed + 1
            continue
        stopped += 1
        where = f"{how.name} after {after:.2f} s, {'empty' if empty else 'full'} cache"
        print(f"{command.module}: {where}: ended {took:.1f} s later ({stopped}/{times})", file=sys.stderr)
        if status != 128 + how or not said[0].startswith("stopped") or "Traceback" in errors or "Fatal" in errors:
            problems.append(f"{where}: status {status}, {errors[-1000:]!r}")
        if took > (SOON_COMPILING if empty else SOON):
            problems.append(f"{where}: {took:.1f} s to its end")
    out = work / f"stopped{folder}"
    if disturbing.differences(work / "whole", out):
        disturbing.run(command.module, command.arguments, {**names, "out": out}, environment)
    return problems + disturbing.differences(work / "whole", out)
