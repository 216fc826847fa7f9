"""VPT: `tokens` prompts per layer in the vision tower; `depth` 0 means all layers, 1 is shallow."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "vpt", "method_options": {"tokens": 4, "depth": 0}})
