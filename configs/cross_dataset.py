"""Cross-dataset transfer: train on ImageNet, evaluate on the ten other datasets.

python -m experiments.table1 --config=configs/cross_dataset.py --config.data_dir=/data
"""

from ml_collections import ConfigDict

from configs import table1


def get_config() -> ConfigDict:
    config = table1.get_config()
    config.protocol = "cross_dataset"
    config.methods = (
        *("zero_shot", "vpt", "coop", "ivlp", "ivlp_matched", "ivlp_matched_2"),
        *("maple", "bias", "bias_by_kind"),
    )
    config.method_options = ConfigDict()
    config.datasets = ("imagenet",)
    config.shots = (16,)
    config.workdir = "workdir/cross_dataset"
    return config
