"""Table 1 on the embedded demo model and datasets: minutes on two cores, nothing to download.

    python -m experiments.table1 --config=configs/demo.py

These are clothes, five methods, 16 images per class and two seeds, in four minutes. Nine methods on handwritten
digits, on sixty classes of emoji, and on all three with five seeds, which the README's pictures come from:

    python -m experiments.table1 --config=configs/demo.py:digits
    python -m experiments.table1 --config=configs/demo.py:emoji
    python -m experiments.table1 --config=configs/demo.py:full

Prompts on the embedded SigLIP, on the same images with the same seeds:

    python -m experiments.table1 --config=configs/demo.py:siglip

Images of clothes of which some classes have many and others few, as a Dirichlet distribution draws it:

    python -m experiments.table1 --config=configs/demo.py:imbalanced

The literature's other protocols on the same pictures, 16 shots, two seeds: half of the emoji classes learned and both
halves tested, the other datasets tested by what was learned on emoji, and the same emoji as other artists draw them:

    python -m experiments.table1 --config=configs/demo.py:base_to_new
    python -m experiments.table1 --config=configs/demo.py:cross_dataset
    python -m experiments.table1 --config=configs/demo.py:domain_generalization

The learning rates were chosen with

    python -m experiments.table1 --config=configs/demo.py:full --config.datasets=demo/digits,demo/fashion \\
        --config.seeds=1 --config.learning_rates=0.02,0.1,0.5,2.0 --config.score_on=validation --workdir=workdir/rates

for each method on a grid that goes on where its best rate is at an end: VPT and IVLP down to 0.0008, IVLP with two
prompts, TaskRes and biases up to 32. Each entry is of the `rates.json` of its grid. Those for SigLIP were chosen with
`demo.py:siglip`.
"""

from ml_collections import ConfigDict

from clipbias.checks import check_choice
from clipbias.data.protocols import IMBALANCED
from configs import table1

PRESETS = {
    "quick": "clothes, five methods, 16 shots, two seeds",
    "digits": "handwritten digits, nine methods, 16 shots, three seeds",
    "emoji": "the same on emoji",
    "full": "digits, clothes and emoji, nine methods, 16 shots, five seeds",
    "siglip": "the embedded SigLIP on the three, VPT and IVLP, 16 shots, five seeds",
    IMBALANCED: "clothes, of some classes more images than of others, 16 on average, two seeds",
    "base_to_new": "half of the emoji classes learned, both halves tested",
    "cross_dataset": "learned on emoji, tested on digits and clothes too",
    "domain_generalization": "learned on one artist's emoji, tested on three others'",
}


def get_config(size: str = "quick") -> ConfigDict:
    check_choice("the preset", size, tuple(PRESETS))
    config = table1.get_config(size if size in table1.PRESETS else "few_shot")
    config.model = "demo-siglip" if size == "siglip" else "demo"
    config.method_options = ConfigDict()
    # A rate for each method, selected on validation images of digits and clothes; it says which were compared. One
    # rate for all, as in the paper, is `--config.rates_file=None`; its 0.0025 hardly moves a model as narrow as this.
    config.rates_file = "demo_siglip_rates.json" if size == "siglip" else "demo_rates.json"
    config.learning_rate = 0.05
    # Ten passes over ten classes of 16 images would be 50 steps, where the paper's datasets make 300 to 5,000.
    config.epochs = None
    config.shots = (16,)
    config.datasets = ("demo/emoji",)
    config.seeds = (1, 2)
    config.workdir = f"workdir/demo_{size}"
    if size in ("quick", IMBALANCED):  # four minutes on two cores
        config.datasets = ("demo/fashion",)
        config.methods = ("zero_shot", "coop", "ivlp", "ivlp_matched", "taskres", "bias")
    if size == "quick":
        config.workdir = "workdir/demo"
    if size in ("digits", "emoji"):
        config.datasets = (f"demo/{size}",)
        config.seeds = (1, 2, 3)
    if size in ("full", "siglip"):
        config.datasets = ("demo/digits", "demo/fashion", "demo/emoji")
        config.seeds = (1, 2, 3, 4, 5)
    if size == "siglip":
        config.methods = ("zero_shot", "vpt", "ivlp")
    return config
