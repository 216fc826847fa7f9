"""SIGINT and SIGTERM at random moments: a command ends soon, with its sentence, and continues (`tools/disturb.py`)."""

import itertools
import random
import shutil
import sys

from clipbias import interruption
from tools.disturb import Trials

# Seconds from the signal to the end, on a machine with other work.
SOON, SOON_COMPILING = 10.0, 30.0
# Before this the interpreter itself starts, and a signal does to it what it does to any.
BEGIN = 0.3


def disturb(trials: Trials, times: int, moments: random.Random) -> list[str]:
    """Runs a command undisturbed and stopped so many times; returns what is wrong, which should be nothing.

    Arguments as in `tools.disturb.disturb`.
    """
    first, again = trials.run("whole"), trials.run("again")
    problems, empty_cache = trials.differences("again"), trials.work / "empty"
    kinds = itertools.cycle(itertools.product((False, True), interruption.SIGNALS))
    stopped, folder, missed = 0, 0, 0
    while stopped < times and missed < 10 + times:
        empty, how = next(kinds)
        shutil.rmtree(empty_cache, ignore_errors=True)
        out, cache = f"stopped{folder}", {"XDG_CACHE_HOME": str(empty_cache)} if empty else {}
        after = moments.uniform(BEGIN, max(first if empty else again, 2 * BEGIN))
        status, errors, took = trials.interrupt(out, after=after, how=how, environment=cache)
        said = errors.strip().splitlines()[-1:] or [""]
        if not took or status == 0 or (status == 1 and said[0].startswith("error: ") and "exists already" in said[0]):
            # It was faster: what it ended with counts, and the next one begins anew.
            problems += trials.differences(out)
            folder, missed = folder + 1, missed + 1
            continue
        stopped += 1
        where = f"{how.name} after {after:.2f} s, {'empty' if empty else 'full'} cache"
        print(f"{trials.command.module}: {where}: ended {took:.1f} s later ({stopped}/{times})", file=sys.stderr)
        if status != 128 + how or not said[0].startswith("stopped") or "Traceback" in errors or "Fatal" in errors:
            problems.append(f"{where}: status {status}, {errors[-1000:]!r}")
        if took > (SOON_COMPILING if empty else SOON):
            problems.append(f"{where}: {took:.1f} s to its end")
    out = f"stopped{folder}"
    if trials.differences(out):
        trials.run(out)
    return problems + trials.differences(out)
