"""A page to play with: zero-shot beside tuned adapters on any picture and any class names.

python -m experiments.app --config.adapters=workdir/demo/adapters
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Adapter files, folders that hold some, or patterns with "*", separated by commas, all of one model; empty for
    # zero-shot alone.
    config.adapters = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # The frozen model; empty takes the adapters', and without any "demo".
    config.model = ""
    # Pictures to start from: files and folders, separated by commas; empty takes some of the embedded datasets.
    config.images = ""
    # Class names to start from, separated by commas, or a text file with one per line; empty takes the first adapter's.
    config.classes = ""
    # The address that the page is served at: "127.0.0.1" for this machine alone, "0.0.0.0" for every one that reaches
    # it.
    config.host = "127.0.0.1"
    # The port; 0 takes the first free one from 7860 on.
    config.port = 0
    config.workdir = "workdir/app"
    return config
