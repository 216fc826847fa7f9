"""Table 1 of the paper: six methods and zero-shot, eleven datasets, 4, 8 and 16 shots, three seeds.

    python -m experiments.table1 --config=configs/table1.py --config.data_dir=/data --workdir=/results/table1

Bias tuning at its parameter budget is compared with IVLP at the same budget in a row of its own, `ivlp_matched`; beside
them, not in the paper, are bias tuning by kind of token and IVLP at that budget, `ivlp_matched_2`. The presets are the
literature's protocols, such as

    python -m experiments.table1 --config=configs/table1.py:base_to_new --config.data_dir=/data
"""

from ml_collections import ConfigDict

from clipbias.checks import check_choice
from configs import base

PRESETS = {
    "few_shot": "eleven datasets, 4, 8 and 16 shots",
    "base_to_new": "half of the classes learned, both halves tested, 16 shots",
    "cross_dataset": "learned on ImageNet, tested on the ten others too, 16 shots",
    "domain_generalization": "learned on ImageNet, tested on ImageNet-V2, Sketch, A and R with their classes, 16 shots",
}


def get_config(protocol: str = "few_shot") -> ConfigDict:
    check_choice("the preset", protocol, tuple(PRESETS))
    config = base.get_config()
    # The methods, by name or by the path of a file of your own (docs/methods.md).
    config.methods = (
        *("zero_shot", "vpt", "coop", "ivlp", "ivlp_matched", "ivlp_matched_2"),
        *("maple", "taskres", "bias", "bias_by_kind"),
    )
    # Options by method name, or by method@dataset for one dataset only.
    config.method_options = ConfigDict({"taskres@oxford_flowers": {"alpha": 1.0}})
    # The datasets, by name (docs/datasets.md).
    config.datasets = (
        "imagenet",
        "caltech101",
        "oxford_pets",
        "stanford_cars",
        "oxford_flowers",
        "food101",
        "fgvc_aircraft",
        "sun397",
        "dtd",
        "eurosat",
        "ucf101",
    )
    # Training images per class.
    config.shots = (4, 8, 16)
    # Of the draws of training images, the learnables' start and the order of images; tables average over them.
    config.seeds = (1, 2, 3)
    # "few_shot", "full" (with shots 0), "pseudo_labels", "base_to_new", "cross_dataset" or "domain_generalization".
    config.protocol = protocol
    # Datasets that "cross_dataset" and "domain_generalization" evaluate on besides; empty takes the literature's.
    config.targets = ()
    # Learning rates that are tried on validation images to choose from; empty takes `learning_rate` for every method.
    config.learning_rates = ()
    # What a learning rate is chosen for: each "method" on all datasets and shots together, or each "cell" (method,
    # dataset and shots); with "none" all are tested instead, each with rows of its own.
    config.choose = "method"
    # "test", or "validation" to only choose learning rates (`rates.json`), which other jobs may share in parts.
    config.score_on = "test"
    # Cells trained side by side in one program; 0 takes all seeds and learning rates of one method, dataset and shots.
    config.runs_per_program = 0
    # Where a dataset cannot be used: "raise" before anything is trained, or "skip" its runs.
    config.on_missing = "raise"
    # "2/4" runs the second of four parts, which other jobs may run meanwhile in the same work folder; empty runs all.
    config.part = ""
    # Show the finished runs of the work folder beside published results, and run nothing.
    config.compare = False
    config.workdir = "workdir/table1"
    if protocol != "few_shot":
        config.shots, config.workdir = (16,), f"workdir/{protocol}"
    if protocol in ("cross_dataset", "domain_generalization"):
        config.datasets = ("imagenet",)
    if protocol in ("base_to_new", "cross_dataset"):  # a residual per class has nothing to say about new classes
        config.methods = tuple(method for method in config.methods if method != "taskres")
        config.method_options = ConfigDict()
    return config
