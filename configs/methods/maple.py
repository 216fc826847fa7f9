"""MaPLe: vision prompts are linear maps of text prompts, in the first `depth` layers."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "maple", "method_options": {"tokens": 2, "depth": 9}})
