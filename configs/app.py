"""A page to play with: zero-shot beside tuned adapters on any picture and any class names.

python -m experiments.app --config.adapters=workdir/demo/adapters
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.add_adapters(ConfigDict())
    # Pictures to start from: files and folders, separated by commas; empty takes the first adapter's dataset if it is
    # embedded. Without an adapter, all three of these are taken from demo/emoji.
    config.images = ""
    # Class names to start from, separated by commas, or a text file with one per line; empty takes the first adapter's.
    config.classes = ""
    # Prompt template to start from, with {} for the class name; empty takes the first adapter's.
    config.template = ""
    # The address that the page is served at: "127.0.0.1" for this machine alone, "0.0.0.0" for every one that reaches
    # it.
    config.host = "127.0.0.1"
    # The port; 0 takes the first free one from 7860 on.
    config.port = 0
    # Folder for everything that is written; --workdir takes precedence over it.
    config.workdir = "workdir/app"
    return config
