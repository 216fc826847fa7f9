"""Distillation of an adapter into a plain CLIP."""

import dataclasses

from ml_collections import ConfigDict

from clipbias.distillation import DistilOptions
from clipbias.settings import group, setting, to_config
from clipbias.training.device import Compute
from configs._common import AdapterSettings, DatasetSettings


@dataclasses.dataclass(frozen=True)
class DistilSettings(AdapterSettings, DatasetSettings):
    """The settings of `distil`."""

    output: str | None = setting(None, "The folder to write, a new one.")
    dataset: str | None = setting(
        None,
        'Images to learn; None takes the adapter\'s dataset; "folder" with data_dir takes all images below it without '
        "labels, or where its folders are the adapter's classes a dataset with labels for the certificate.",
    )
    student: str | None = setting(None, "The model that learns, named as `model` is; None takes the adapter's.")
    options: DistilOptions = group(DistilOptions)
    compute: Compute = group(Compute)


def get_config() -> ConfigDict:
    return to_config(DistilSettings, workdir="workdir/distil")
