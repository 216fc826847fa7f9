"""The options of a study."""

import dataclasses
from typing import Annotated

import jax

from clipbias.checks import Choices, Count, Positive, Range, check_fields
from clipbias.data.reading import ImageReading, OnImageError, WorkerCount
from clipbias.settings import setting, setting_of
from clipbias.training.students import FORMS

# Images per batch by default. What a block makes of more of them leaves a CPU's caches.
_BATCH = 32
_BATCH_ON_CPU = 8
# Options that no result depends on.
_HOW = ("batch_size", "workers")


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """The options of a study, all of which are stored with its results."""

    batch_size: Positive | None = setting(
        None, f"Images at a time over all devices; None takes {_BATCH_ON_CPU} on a CPU and {_BATCH} elsewhere."
    )
    image_limit: Positive | None = setting(
        None,
        "At most so many images are explained, spread evenly; None takes all. Predictions of an evaluation are read "
        "for all anyway.",
    )
    training_images: Positive | None = setting(
        256, "Means of what is added are measured on so many training images, spread evenly; None takes all."
    )
    explore_images: Annotated[int, Range(1, 1000)] = setting(
        48,
        "Images that a reader of the report can explore, layer by layer; fewer where their maps "
        "would take more than 15 MB of the page.",
    )
    replacement_forms: tuple[Annotated[str, Choices(tuple(FORMS))], ...] = setting(
        ("kind",), f"Forms that are fitted to each adapter's outputs; there are {', '.join(FORMS)}."
    )
    replacement_steps: Count = setting(
        300, "Steps of each form, and of the adapter's own method fitted to itself; 0 leaves replacements out."
    )
    on_image_error: OnImageError = setting_of(ImageReading, "on_image_error")
    workers: WorkerCount | None = setting_of(ImageReading, "workers")
    seed: Count = setting(0, "Of random orders, of other images in the causal test, and of fits.")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def images_at_once(self) -> int:
        """Images per step over all devices: `batch_size`, or what is fast here."""
        return self.batch_size or (_BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH)

    def what_counts(self) -> dict[str, object]:
        """The options that results depend on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _HOW}
