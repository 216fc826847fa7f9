"""Checks datasets on disk, builds shards of them, or draws some of their images.

python -m experiments.prepare_data --config.data_dir=/data
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "check" looks for what is missing or differs from the catalogue; "build" makes array_record shards; "draw" makes a
    # picture of training images.
    config.action = "check"
    # The datasets, by name; `check` takes all fifteen of the catalogue where none is given.
    config.datasets = ()
    # Root folder of the images (not needed by the demo datasets).
    config.data_dir = ""
    # build: the folder for the shards, made if needed. draw: the PNG file.
    config.output = ""
    # check: decode every image, too.
    config.decode = False
    # draw: images per class, the seed that draws them, and how many classes at most.
    config.shots = 16
    config.seed = 1
    config.most_classes = 12
    return config
