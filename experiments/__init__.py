"""The binaries. Each is run as `python -m experiments.NAME`."""

import sys

from clipbias import interruption
from clipbias.terminal import outlive_readers

if sys.argv[:1] == ["-m"]:  # one of them begins, with imports that take seconds
    outlive_readers()
    interruption.watch()
