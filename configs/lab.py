"""All that a lab can answer with the eleven datasets, the real weights and about a day of one GPU.

    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab
    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab --config.part=2/4

Fourteen methods with 1 to 16 images per class, base-to-new, and the causal test of prompts and weights at 16. The same
command continues. A miniature on the embedded model:

    python -m experiments.lab --config=configs/lab.py:demo
"""

import dataclasses

from ml_collections import ConfigDict

from clipbias.checks import Count, Positive, check_choice
from clipbias.settings import setting, to_config
from configs import demo
from configs.table1 import GridSettings

PRESETS = {"paper": "the eleven datasets", "demo": "embedded clothes, 8 and 16 shots, two seeds"}
METHODS = (
    "zero_shot",
    "coop",
    "vpt",
    "ivlp",
    "ivlp_matched",
    "ivlp_matched_2",
    "maple",
    "promptsrc",
    "taskres",
    "linear_probe",
    "gda",
    "bias",
    "bias_by_kind",
    "clip_lora",
)
# Without methods that learn something for each class. PromptSRC's authors have settings of their own for new classes.
BASE_TO_NEW = tuple(
    "promptsrc_base_to_new" if name == "promptsrc" else name
    for name in METHODS
    if name not in ("taskres", "linear_probe", "gda")
)


@dataclasses.dataclass(frozen=True)
class LabSettings(GridSettings):
    """The settings of `lab`."""

    shots: tuple[Positive, ...] = setting((1, 2, 4, 8, 16), "Training images per class.")
    more_seeds: tuple[Count, ...] = setting(
        (1, 2, 3, 4, 5), "Seeds with the most shots, whose adapters the causal test is made of."
    )
    base_to_new: tuple[str, ...] = setting(
        BASE_TO_NEW,
        "Methods of base-to-new: trained on half of the classes, tested on both halves; () leaves it out.",
    )
    causal_images: Count = setting(
        1000, "Test images of the causal test of each dataset, spread evenly; 0 leaves the test out."
    )


def get_config(where: str = "paper") -> ConfigDict:
    check_choice("the preset", where, tuple(PRESETS))
    config = to_config(
        LabSettings,
        methods=METHODS,
        method_options={"taskres@oxford_flowers": {"alpha": 1.0}},
        epochs=10,
        dtype="auto",
        cache_gb=24.0,  # a third of it keeps the test images of the largest dataset, 7.5 GB
        workdir="workdir/lab",
    )
    if where == "demo":
        small = demo.get_config()
        for name in ("model", "method_options", "rates_file", "learning_rate", "epochs", "datasets"):
            config[name] = small[name]
        config.methods = ("zero_shot", "ivlp_matched", "gda", "bias")
        config.base_to_new = ("zero_shot", "bias")
        config.shots = (8, 16)
        config.seeds = (1,)
        config.more_seeds = (1, 2)
        config.causal_images = 100
        config.dtype = "float32"
        config.cache_gb = 3.0
    return config
