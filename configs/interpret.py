"""What learned prompts and biases say, how long they are, and how those of many runs lie to one another.

python -m experiments.interpret --config.adapters=workdir/demo --workdir=workdir/interpret
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Adapter files, folders of `train` or `table1`, or patterns such as
    # workdir/demo/adapters/bias-*.safetensors, separated by commas; all of one base model.
    config.adapters = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # The frozen model; empty takes the adapters'.
    config.model = ""
    # Nearest words per prompt.
    config.words = 5
    # Also the words of deeper prompts: a pass of the text tower over the vocabulary for each, which all adapters
    # share. Four prompts of ViT-B/16 take about five minutes on two cores.
    config.deeper = False
    # Words of the vocabulary per pass.
    config.chunk = 1024
    # At most so many texts per adapter for the mean norm of text tokens.
    config.classes = 64
    # Test images per dataset for the mean norm of image tokens; 0 leaves it out and reads no images.
    config.images = 0
    # Project what training changed, instead of what was learned: prompts start at random.
    config.change = False
    # Of t-SNE's start.
    config.seed = 0
    config.workdir = "workdir/interpret"
    return config
