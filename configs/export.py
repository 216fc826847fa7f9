"""An adapter for other programs."""

import dataclasses

from ml_collections import ConfigDict

from clipbias.settings import setting, to_config
from configs._common import AdapterSettings


@dataclasses.dataclass(frozen=True)
class ExportSettings(AdapterSettings):
    """The settings of `export`."""

    form: str | None = setting(
        None,
        '"checkpoint", "open_clip", "head", "program", "onnx" or "peft" (docs/export.md); None takes what fits the '
        "method.",
    )
    output: str | None = setting(None, "The folder to write, a new one.")


def get_config() -> ConfigDict:
    return to_config(ExportSettings)
