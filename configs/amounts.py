"""The bias that a tuned adapter amounts to, as an adapter of bias tuning, and what it keeps of the gain.

python -m experiments.amounts --config.adapter=workdir/ivlp --config.kind=vector --workdir=workdir/amounts
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # An adapter file, or a folder of `train` that holds one.
    config.adapter = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # The frozen model; empty takes the adapter's.
    config.model = ""
    # The dataset to measure on; empty takes the adapter's.
    config.dataset = ""
    # "vector": one bias per layer. "kind": two, one for `[cls]` or EOS and one for all other tokens.
    config.kind = "vector"
    # Training images to average over, spread over the training set; 0 takes all.
    config.amounts_images = 256
    # Test images that it is evaluated on, spread over the test set; 0 takes all.
    config.image_limit = 0
    # Images at a time over all devices; 0 takes 8 on a CPU and 32 elsewhere.
    config.batch_size = 0
    config.workdir = "workdir/amounts"
    return config
