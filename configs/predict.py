"""Classifies images with zero-shot CLIP or a tuned adapter.

python -m experiments.predict --config.images=photos --config.classes=cat,dog
python -m experiments.predict --config.images=photos --config.adapters=workdir/digits --config.relevancy
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.add_adapters(base.add_model(ConfigDict()))
    # Image files and folders, separated by commas; folders are searched through and through.
    config.images = ""
    # Class names separated by commas, or a text file with one per line; empty takes the adapter's.
    config.classes = ""
    # Texts in place of class names, which no template is added to, such as "a dog on grass,two cats"; or a text file
    # with one per line.
    config.texts = ""
    # Whether an adapter has zero-shot CLIP beside it.
    config.zero_shot = True
    # How many classes are shown.
    config.top = 5
    # Whether the relevancy of every image's most likely class is drawn, too.
    config.relevancy = False
    # First layer of relevancy: 0 all layers, -1 the last alone.
    config.start_layer = 0
    # Images at a time.
    config.batch_size = 32
    config.workdir = "workdir/predict"
    return config
