"""Bias tuning: one embedding per layer added to every token, in the chosen towers."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "bias", "method_options": {"vision_tower": True, "text_tower": True}})
