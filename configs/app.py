"""A page to play with: zero-shot beside tuned adapters on any picture and any class names."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from clipbias.checks import Range
from clipbias.settings import setting, to_config
from configs._common import AdapterSettings, WorkdirSettings


@dataclasses.dataclass(frozen=True)
class AppSettings(AdapterSettings, WorkdirSettings):
    """The settings of `app`."""

    images: str | None = setting(
        None,
        "Pictures to start from: files and folders, separated by commas; None takes the first adapter's dataset if it "
        "is embedded. Without an adapter, pictures, classes and template are taken from demo/emoji.",
    )
    classes: str | None = setting(
        None,
        "Class names to start from, separated by commas, or a text file of them; None takes the first adapter's.",
    )
    template: str | None = setting(
        None, "Prompt template to start from, with {} for the class name; None takes the first adapter's."
    )
    host: str = setting(
        "127.0.0.1",
        'The address that the page is served at; "127.0.0.1" for this machine alone, "0.0.0.0" for every one that '
        "reaches it.",
    )
    port: Annotated[int, Range(1, 65535)] | None = setting(
        None, "The port; None takes the first free one from 7860 on."
    )


def get_config() -> ConfigDict:
    return to_config(AppSettings, workdir="workdir/app")
