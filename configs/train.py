"""One training run.

    python -m experiments.train --config=configs/train.py:ivlp --config.dataset=eurosat --config.data_dir=/data

The part after the colon is a method by its name, "bias" without one, or a file of your own; its options are under
`config.method_options`. Own images, one sub-folder per class:

    python -m experiments.train --config=configs/train.py --config.model=demo --config.dataset=folder \\
        --config.data_dir=/path/to/images --config.template="a photo of a {}."
"""

from ml_collections import ConfigDict, config_dict

from configs import base


def get_config(method: str = "bias") -> ConfigDict:
    # A method's own file knows its options.
    from clipbias.tuning.registry import option_types

    config = base.get_config()
    # The dataset, by name (docs/datasets.md).
    config.dataset = "demo/digits"
    # Images per class; 0 takes all.
    config.shots = 16
    # Of the draw of training images, the learnables' start and the order of images.
    config.seed = 1
    # A small set makes more passes than the paper's, so that it is trained for 300 steps.
    config.epochs = 0
    # The method, by name or by the path of a file of your own (docs/methods.md).
    config.method = method
    # The method's options by name. One that is not set is the authors' for the dataset, else the method's default.
    kinds = option_types(method).items()
    config.method_options = ConfigDict({name: config_dict.placeholder(kind) for name, kind in kinds})
    return config
