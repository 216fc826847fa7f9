"""Base-to-new generalisation: train on the first half of the classes, evaluate on both halves.

python -m experiments.table1 --config=configs/base_to_new.py --config.data_dir=/data
"""

from ml_collections import ConfigDict

from configs import table1


def get_config() -> ConfigDict:
    config = table1.get_config()
    config.protocol = "base_to_new"
    # A residual per class has nothing to say about new classes.
    config.methods = (
        *("zero_shot", "vpt", "coop", "ivlp", "ivlp_matched", "ivlp_matched_2"),
        *("maple", "bias", "bias_by_kind"),
    )
    config.method_options = ConfigDict()
    config.shots = (16,)
    config.workdir = "workdir/base_to_new"
    return config
