"""CLIP as it is: `templates` is "dataset", "imagenet_select", "imagenet_full", or one with {}."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "zero_shot", "method_options": {"templates": "dataset"}})
