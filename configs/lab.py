"""All that a lab can answer with the eleven datasets, the real weights and about a day of one GPU.

    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab
    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab --config.part=2/4

Fourteen methods with 1 to 16 images per class, base-to-new, and the causal test of prompts and weights at 16. The same
command continues. A miniature on the embedded model:

    python -m experiments.lab --config=configs/lab.py:demo
"""

from ml_collections import ConfigDict

from clipbias.checks import check_choice
from configs import demo, table1

PRESETS = {"paper": "the eleven datasets", "demo": "embedded clothes, 8 and 16 shots, two seeds"}


def get_config(where: str = "paper") -> ConfigDict:
    check_choice("the preset", where, tuple(PRESETS))
    config = {"paper": table1.get_config, "demo": demo.get_config}[where]()
    for name in ("protocol", "targets", "learning_rates", "choose", "score_on", "compare"):
        del config[name]  # a lab is not a search, and shows nothing
    config.methods = (
        *("zero_shot", "coop", "vpt", "ivlp", "ivlp_matched", "ivlp_matched_2", "maple", "promptsrc"),
        *("taskres", "linear_probe", "gda", "bias", "bias_by_kind", "clip_lora"),
    )
    # Training images per class.
    config.shots = (1, 2, 4, 8, 16)
    config.seeds = (1, 2, 3)
    # Seeds with the most shots, whose adapters the causal test is made of.
    config.more_seeds = (1, 2, 3, 4, 5)
    # Methods that are trained on half of the classes and tested on the other half too; empty leaves base-to-new out.
    config.base_to_new = (
        *("zero_shot", "coop", "vpt", "ivlp", "ivlp_matched", "ivlp_matched_2", "maple", "promptsrc_base_to_new"),
        *("bias", "bias_by_kind", "clip_lora"),
    )
    # Test images of the causal test of each dataset, spread evenly; 0 leaves the test out.
    config.causal_images = 1000
    # The fastest type of the device that trains what float32 trains.
    config.dtype = "auto"
    # A third of it keeps the test images of the largest dataset, 7.5 GB.
    config.cache_gb = 24.0
    config.workdir = "workdir/lab"
    if where == "demo":
        config.methods = ("zero_shot", "ivlp_matched", "gda", "bias")
        config.base_to_new = ("zero_shot", "bias")
        config.shots, config.seeds, config.more_seeds = (8, 16), (1,), (1, 2)
        config.causal_images, config.dtype, config.cache_gb = 100, "float32", 3.0
    return config
