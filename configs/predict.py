"""Classifies images with zero-shot CLIP or a tuned adapter.

python -m experiments.predict --config.images=photos --config.classes=cat,dog
python -m experiments.predict --config.images=photos --config.adapter=workdir/digits --relevancy
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Image files and folders, separated by commas; folders are searched through and through.
    config.images = ""
    # An adapter file, or a folder of `train`; empty for zero-shot.
    config.adapter = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # The frozen model; empty takes the adapter's, and without one "demo".
    config.model = ""
    # Class names separated by commas, or a text file with one per line.
    config.classes = ""
    # Texts in place of class names, which no template is added to, such as "a dog on grass,two cats"; or a text file
    # with one per line.
    config.texts = ""
    # Whether an adapter has zero-shot CLIP beside it.
    config.zero_shot = True
    # How many classes are shown.
    config.top = 5
    # Images at a time.
    config.batch_size = 32
    # First layer of relevancy: 0 all layers, -1 the last alone.
    config.start_layer = 0
    config.workdir = "workdir/predict"
    return config
