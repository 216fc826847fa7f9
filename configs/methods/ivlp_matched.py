"""IVLP with as many parameters as bias tuning."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "ivlp_matched", "method_options": {"text_tokens": 1, "vision_tokens": 1, "depth": 0}})
