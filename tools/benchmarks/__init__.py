"""What `python -m tools.benchmarks` measures, one file per sub-command, and what they share."""
