"""TaskRes: a residual on the class features; its authors take alpha 1.0 for Flowers102."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "taskres", "method_options": {"alpha": 0.5}})
