"""The binaries. Each is run as `python -m experiments.NAME`."""
