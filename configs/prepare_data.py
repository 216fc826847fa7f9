"""Checks datasets on disk, builds shards of them, or draws some of their images."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from clipbias.checks import Choices, Count, Positive
from clipbias.settings import setting, setting_of, to_config
from configs._common import DatasetSettings


@dataclasses.dataclass(frozen=True)
class PrepareDataSettings:
    """The settings of `prepare_data`."""

    action: Annotated[str, Choices(("check", "build", "draw"))] = setting(
        "check",
        '"check" looks for what is missing or differs from the catalogue; "build" makes array_record shards; "draw" '
        "makes a picture of training images.",
    )
    datasets: tuple[str, ...] | None = setting(
        None, "The datasets, by name; `check` takes all fifteen of the catalogue for None."
    )
    data_dir: str | None = setting_of(DatasetSettings, "data_dir")
    output: str | None = setting(None, "build: the folder for the shards, made if needed. draw: the PNG file.")
    decode: bool = setting(False, "check: decode every image, too.")
    shots: Positive = setting(16, "draw: images per class.")
    seed: Count = setting(1, "draw: the seed of their few-shot split.")


def get_config() -> ConfigDict:
    return to_config(PrepareDataSettings)
