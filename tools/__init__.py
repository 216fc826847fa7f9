"""What is run once or by developers. Each tool is run as `python -m tools.NAME`."""
