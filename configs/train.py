"""One training run.

    python -m experiments.train --config=configs/train.py:ivlp --config.dataset=eurosat --config.data_dir=/data

The part after the colon is a method by its name, "bias" without one, or a file of your own; its options and their
defaults are under `config.method_options`. Own images, one sub-folder per class:

    python -m experiments.train --config=configs/train.py --config.model=demo --config.dataset=folder \\
        --config.data_dir=/path/to/images --config.template="a photo of a {}."
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "bias") -> ConfigDict:
    from clipbias.tuning.registry import make_method, method_options  # a method's own file knows its options

    config = base.get_config()
    config.dataset = "demo/digits"
    # Images per class; 0 takes all.
    config.shots = 16
    config.seed = 1
    config.method = method
    config.method_options = ConfigDict(method_options(make_method(method)))
    return config
