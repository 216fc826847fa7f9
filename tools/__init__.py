"""What is run once or by developers. Each tool is run as `python -m tools.NAME`."""

import sys

from clipbias import interruption

STOPPED = "stopped; nothing unfinished is left, the same command starts again."

if sys.argv[:1] == ["-m"]:  # one of them begins, with imports that take seconds
    interruption.watch(STOPPED)
