"""One training run.

    python -m experiments.train --config=configs/train.py:ivlp --config.dataset=eurosat --config.data_dir=/data

The part after the colon is a method by its name, "bias" without one, or a file of your own; its options are under
`config.method_options`. Own images, one sub-folder per class:

    python -m experiments.train --config=configs/train.py --config.model=demo --config.dataset=folder \\
        --config.data_dir=/path/to/images --config.template="a photo of a {}."
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from clipbias.checks import Count, Positive
from clipbias.settings import setting, to_config
from clipbias.tuning.registry import option_types
from configs._common import SweepSettings


@dataclasses.dataclass(frozen=True)
class TrainSettings(SweepSettings):
    """The settings of `train`."""

    dataset: str = setting("demo/digits", "The dataset, by name (docs/datasets.md).")
    shots: Positive | None = setting(16, "Training images per class; None takes all.")
    seed: Count = setting(1, "Of the few-shot split, and of the start (`start_seed`).")
    method: str = setting("bias", "The method, by name or by the path of a file of your own (docs/methods.md).")
    method_options: Mapping[str, object] = setting(
        {},
        "The method's options by name. One that is not set is the authors' for the dataset, else the method's default.",
    )


def get_config(method: str = "bias") -> ConfigDict:
    options = {name: config_dict.placeholder(kind) for name, kind in option_types(method).items()}
    return to_config(TrainSettings, method=method, method_options=options)
