"""Evaluation of an adapter file, or of zero-shot CLIP where `adapter` is empty."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.adapter = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # Empty values are taken from the adapter.
    config.model = ""
    config.dataset = ""
    # The images to evaluate on: "train", "val" or "test".
    config.images = "test"
    # A dataset whose test images are to be told from those, such as "demo/shapes"; empty for none.
    config.ood = ""
    config.workdir = "workdir/evaluate"
    return config
