"""A study of why tuning works: zero-shot against tuned adapters on one dataset or several.

python -m experiments.explain --config.adapters=workdir/ivlp,workdir/bias --workdir=workdir/why
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Adapter files, or folders of `experiments.train` that hold one, separated by commas. For several datasets the
    # paths contain {dataset}. A "*" stands for any part of a name.
    config.adapters = ""
    # Files or modules of methods of your own that adapters use, separated by commas. Nothing that only an adapter names
    # is run.
    config.own_methods = ""
    # Empty values are taken from the adapters.
    config.model = ""
    config.dataset = ""
    # Several datasets; each gets a folder and a report of its own, and all together an overview.
    config.datasets = ()
    # The images to explain on: "train", "val" or "test".
    config.images = "test"
    # "all", or sections separated by commas: relevancy, text_attention, vision_attention, similarity, decomposition,
    # factorial, amounts, faithfulness, examples, explore, verdict.
    config.figures = "all"

    # Folders of runs whose predictions are read where they are of the same model and images, separated by commas; those
    # of the adapters' own runs are looked at anyway.
    config.predictions = ""

    # Images at a time over all devices; 0 takes 8 on a CPU and 32 elsewhere.
    config.batch_size = 0
    # At most so many of them, spread evenly; 0 takes all. Predictions of an evaluation are read for all of them anyway.
    config.image_limit = 0
    # Perturbation runs every image over a hundred times.
    config.faithfulness_images = 100
    # The causal test is run with random prompts too, on so many images; 0 leaves this control out.
    config.control_images = 200
    # What a method amounts to is measured on so many training images; 0 takes all.
    config.amounts_images = 256
    # Images that a reader of the report can explore, model by model and layer by layer.
    config.explore_images = 48
    # Pictures shown, and the rotations and layers (from 0; empty takes four) of Fig. 6.
    config.examples = 4
    config.rotations = (0, 90, 180, 270)
    config.layers = ()
    # Relevancy rows are divided by their "sum", by their "max", or brought to 0 … 1 ("minmax").
    config.normalisation = "sum"
    # Attention over the tokens of a kind: "sum" or "mean".
    config.reduction = "sum"
    # Zero-shot's text in the figures of relevancy and of the text tower: the "paper"'s, "a photo of a {}.", or the
    # "dataset"'s own template. Its accuracy is always that of the latter.
    config.zero_shot_text = "paper"
    # First layer of relevancy: 0 all layers, -1 the last alone.
    config.start_layer = 0
    # Prompt similarity: "mean" over the prompts, or the number of one.
    config.prompt = "mean"
    config.save_seconds = 30.0
    config.seed = 0
    config.workdir = "workdir/explain"
    return config
