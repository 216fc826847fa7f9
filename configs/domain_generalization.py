"""Domain generalisation: train on ImageNet, evaluate on ImageNet-V2, Sketch, A and R with their classes.

python -m experiments.table1 --config=configs/domain_generalization.py --config.data_dir=/data
"""

from ml_collections import ConfigDict

from configs import table1


def get_config() -> ConfigDict:
    config = table1.get_config()
    config.protocol = "domain_generalization"
    config.datasets = ("imagenet",)
    config.shots = (16,)
    config.workdir = "workdir/domain_generalization"
    return config
