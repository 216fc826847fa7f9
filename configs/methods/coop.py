"""CoOp: a learned context of `tokens` tokens; 16 start at random, as with no words."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "method": "coop",
            "method_options": {"tokens": 4, "words": "a photo of a", "class_specific": False, "position": "end"},
        }
    )
