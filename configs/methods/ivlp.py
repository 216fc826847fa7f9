"""IVLP: prompts in both towers; `depth` 0 means all layers."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"method": "ivlp", "method_options": {"text_tokens": 4, "vision_tokens": 4, "depth": 0}})
