"""Evaluation of an adapter, or of zero-shot CLIP where `adapters` is empty.

python -m experiments.evaluate --config.adapters=workdir/digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.add_adapters(base.add_images(base.add_model(ConfigDict())))
    # The dataset to evaluate on; empty takes the adapter's.
    config.dataset = ""
    # Its images: "train", "val" or "test".
    config.split = "test"
    # A dataset whose test images are to be told from those images, such as "demo/fashion"; empty for none.
    config.ood = ""
    # Images per step of evaluation, over all devices.
    config.eval_batch_size = 100
    config.workdir = "workdir/evaluate"
    return config
