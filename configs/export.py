"""An adapter for other programs.

python -m experiments.export --config.adapters=workdir/digits --config.output=workdir/export/digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.add_adapters(ConfigDict())
    # "checkpoint", "head", "program" or "peft" (docs/export.md); empty takes what fits the method.
    config.form = ""
    # The folder to write, a new one.
    config.output = ""
    return config
