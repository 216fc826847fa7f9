"""The binaries. Each is run as `python -m experiments.NAME`."""

import os
import sys

from clipbias import interruption
from clipbias.terminal import outlive_readers

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # compilers' notes and warnings: raw lines with thread numbers

if sys.argv[:1] == ["-m"]:  # one of them begins, with imports that take seconds
    outlive_readers()
    interruption.watch()
