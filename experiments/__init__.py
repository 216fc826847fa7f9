"""The binaries. Each is run as `python -m experiments.NAME`."""

import sys

from clipbias import interruption

if sys.argv[:1] == ["-m"]:  # one of them begins, with imports that take seconds
    interruption.watch()
