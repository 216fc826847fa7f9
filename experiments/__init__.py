"""The binaries. Each is run as `python -m experiments.NAME`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # raw lines of C++; what ends a program is raised as well
