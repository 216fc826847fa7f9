"""What `tools.benchmark` measures, one file per sub-command, and what they share."""
