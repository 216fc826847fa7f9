"""The binaries. Each is run as `python -m experiments.NAME`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # compilers' notes and warnings: raw lines with thread numbers
