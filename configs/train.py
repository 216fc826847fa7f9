"""One training run.

    python -m experiments.train --config=configs/train.py:ivlp --config.dataset=eurosat --config.data_dir=/data

The part after the colon is a file of `configs/methods/`, "bias" without one; its options are under
`config.method_options`. Own images, one sub-folder per class:

    python -m experiments.train --config=configs/train.py --config.model=demo --config.dataset=folder \\
        --config.data_dir=/path/to/images --config.template="a photo of a {}."
"""

import importlib
import pkgutil

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "bias") -> ConfigDict:
    config = base.get_config()
    config.dataset = "demo/digits"
    # Images per class; 0 takes all.
    config.shots = 16
    config.seed = 1
    known = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    if method not in known:
        raise ValueError(f"there is no configs/methods/{method}.py; choose one of {', '.join(known)}.")
    config.update(importlib.import_module(f"configs.methods.{method}").get_config())
    return config
