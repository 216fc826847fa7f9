"""Packs finished sweeps into a bundle.

python -m experiments.bundle --config.runs=/results/lab --config.output=results/my_lab
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Work folders of `table1` or `lab`, or patterns with "*", separated by commas.
    config.runs = ""
    # The folder to write, which must not be there.
    config.output = ""
    return config
