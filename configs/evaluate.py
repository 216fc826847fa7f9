"""Evaluation of an adapter file, or of zero-shot CLIP where `adapter` is empty."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # An adapter file, or a folder of `train` that holds one; empty for zero-shot CLIP.
    config.adapter = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # The frozen model; empty takes the adapter's, and without one "demo".
    config.model = ""
    # The dataset to evaluate on; empty takes the adapter's.
    config.dataset = ""
    # The images to evaluate on: "train", "val" or "test".
    config.images = "test"
    # A dataset whose test images are to be told from those images, such as "demo/fashion"; empty for none.
    config.ood = ""
    config.workdir = "workdir/evaluate"
    return config
