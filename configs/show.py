"""Lists and compares runs.

python -m experiments.show --config.runs=workdir/digits,workdir/demo
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Work folders, or patterns with "*" such as workdir/*, separated by commas.
    config.runs = ""
    # How tables are printed: "text", "markdown" or "json".
    config.format = "text"
    # Whether every run of a sweep that ended is listed.
    config.every_run = False
    # PNG file for the training curves; empty draws none.
    config.output = ""
    return config
