"""A study of why tuning works: zero-shot against tuned adapters on one dataset or several.

python -m experiments.explain --config.adapters=workdir/ivlp,workdir/bias --workdir=workdir/why

A first look at a large model without an accelerator:

python -m experiments.explain --config=configs/explain.py:quick --config.adapters=workdir/ivlp --workdir=workdir/look
"""

from ml_collections import ConfigDict

from clipbias.checks import check_choice
from configs import base

PRESETS = {
    "full": "every section, of all images but where the settings say of how many",
    "quick": "a first look: 24 images, without random prompts as a control, and without "
    "perturbation, which runs each image a hundred times",
}


def get_config(size: str = "full") -> ConfigDict:
    check_choice("the preset", size, tuple(PRESETS))
    config = base.add_adapters(base.add_images(base.add_model(ConfigDict())))
    # The dataset to explain all adapters on; empty explains each on the dataset that it was trained on.
    config.dataset = ""
    # Datasets, each with the adapters that were trained on it. Of several datasets, given here or by the adapters, each
    # gets a folder and a report, and all together an overview.
    config.datasets = ()
    # The images to explain on: "train", "val" or "test".
    config.split = "test"
    # "all", or sections separated by commas: relevancy, text_attention, vision_attention, similarity, decomposition,
    # factorial, constants, faithfulness, examples, explore, verdict.
    config.sections = "all"

    # Folders of runs whose predictions are read where they are of the same model and images, separated by commas; those
    # of the adapters' own runs are looked at anyway.
    config.predictions = ""

    # Images at a time over all devices; 0 takes 8 on a CPU and 32 elsewhere.
    config.batch_size = 0
    # At most so many images are explained, spread evenly; 0 takes all. Predictions of an evaluation are read for all
    # anyway.
    config.image_limit = 0
    # At most so many images are perturbed, each of which runs over a hundred times; 0 takes all.
    config.faithfulness_images = 40
    # The causal test is run with random prompts too, on so many images; 0 leaves this control out.
    config.control_images = 200
    # Constants are measured on so many training images; 0 takes all.
    config.training_images = 256
    # Images that a reader of the report can explore, model by model and layer by layer.
    config.explore_images = 48
    # Pictures shown.
    config.examples = 4
    # Degrees by which the picture of Fig. 6 is turned.
    config.rotations = (0, 90, 180, 270)
    # Layers of Fig. 6, from 0; empty takes four.
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
    # Of the random order that faithfulness compares with, and of the control's prompts.
    config.seed = 0
    config.workdir = "workdir/explain"
    if size == "quick":
        from clipbias.explain.results import SECTIONS

        config.sections = ",".join(name for name in SECTIONS if name != "faithfulness")
        config.image_limit, config.control_images, config.training_images, config.explore_images = 24, 0, 16, 8
    return config
