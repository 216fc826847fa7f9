"""How images are read."""

import dataclasses
from typing import Annotated

from clipbias.checks import Choices, Range
from clipbias.settings import setting

ON_ERROR = ("raise", "skip")
# Threads beyond so many only wait for one another.
MOST_WORKERS = 1024

OnImageError = Annotated[str, Choices(ON_ERROR)]
WorkerCount = Annotated[int, Range(1, MOST_WORKERS)]


@dataclasses.dataclass(frozen=True)
class ImageReading:
    """How images are read."""

    on_image_error: OnImageError = setting(
        "raise", 'What to do with an image that cannot be read: "raise" or "skip" (and count).'
    )
    workers: WorkerCount | None = setting(
        None,
        "Threads that read and decode images, which all runs side by side share; None takes one for each processor.",
    )
