"""Lists and compares runs."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from clipbias.checks import Choices
from clipbias.report.runs import FORMATS
from clipbias.settings import setting, to_config


@dataclasses.dataclass(frozen=True)
class ShowSettings:
    """The settings of `show`."""

    runs: str | None = setting(None, 'Work folders, or patterns with "*" such as workdir/*, separated by commas.')
    format: Annotated[str, Choices(FORMATS)] = setting("text", 'How tables are printed: "text", "markdown" or "json".')
    every_run: bool = setting(False, "Whether every run of a sweep and every model of a study is listed.")


def get_config() -> ConfigDict:
    return to_config(ShowSettings)
