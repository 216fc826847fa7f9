"""Evaluation of an adapter, or of zero-shot CLIP where `adapters` is empty."""

import dataclasses

from ml_collections import ConfigDict

from clipbias.checks import Positive
from clipbias.data.pipeline import ImageReading, WorkerCount
from clipbias.settings import setting, setting_of, to_config
from clipbias.training.device import Compute
from configs._common import AdapterSettings, AnswerSettings, DatasetSettings


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(AdapterSettings, AnswerSettings, DatasetSettings):
    """The settings of `evaluate`."""

    dataset: str | None = setting(None, "The dataset to evaluate on; None takes the adapter's.")
    split: str = setting("test", 'Its images: "train", "val" or "test".')
    ood: str | None = setting(
        None, "A dataset whose images are to be told from those, such as demo/fashion; its test images."
    )
    eval_batch_size: Positive = setting_of(Compute, "eval_batch_size")
    workers: WorkerCount | None = setting_of(ImageReading, "workers")


def get_config() -> ConfigDict:
    return to_config(EvaluateSettings, workdir="workdir/evaluate")
