"""The options of a study."""

import dataclasses
from typing import Annotated

import jax

from clipbias.checks import LARGEST, Choices, Count, Positive, Range, check_fields
from clipbias.data.reading import ImageReading, OnImageError, WorkerCount
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import KIND_REDUCTIONS
from clipbias.explain.statistics import NORMALISATIONS
from clipbias.settings import setting, setting_of
from clipbias.training.students import FORMS

ZERO_SHOT_TEXTS = ("paper", "dataset")
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
    faithfulness_images: Positive | None = setting(
        40, "At most so many images are perturbed, each of which runs over a hundred times; None takes all."
    )
    control_images: Count = setting(
        200, "The causal test is run with random prompts too, on so many images; 0 leaves this control out."
    )
    training_images: Positive | None = setting(
        256, "Constants and levels are measured on so many training images, spread evenly; None takes all."
    )
    level_steps: Count = setting(
        0,
        "Steps that fit the best constant in place of what is added to images; 0 leaves this level out.",
    )
    explore_images: Annotated[int, Range(1, 1000)] = setting(
        48,
        "Images that a reader of the report can explore, layer by layer; fewer where their maps "
        "would take more than 15 MB of the page.",
    )
    examples: Annotated[int, Range(1, 1000)] = setting(4, "Pictures shown.")
    rotations: tuple[Annotated[int, Range(-360, 360)], ...] = setting(
        (0, 90, 180, 270), "Degrees by which the pictures of Fig. 6 are turned counter-clockwise."
    )
    layers: tuple[Count, ...] | None = setting(
        None, "Layers of Fig. 6, from 0; None takes the first, the middle and the last two."
    )
    normalisation: Annotated[str, Choices(tuple(NORMALISATIONS))] = setting(
        "sum", 'Relevancy rows are divided by their "sum" or "max", or put on 0 … 1 ("minmax").'
    )
    reduction: Annotated[str, Choices(KIND_REDUCTIONS)] = setting(
        "sum", 'Attention over the tokens of a kind: "sum" or "mean".'
    )
    zero_shot_text: Annotated[str, Choices(ZERO_SHOT_TEXTS)] = setting(
        "paper",
        "Zero-shot's text in figures: the \"paper\"'s, or the \"dataset\"'s own template; the paper's is "
        '"a photo of a {}."; the figures are those of relevancy and of the text tower. Its predictions are always made '
        "with the dataset's.",
    )
    start_layer: Annotated[int, Range(-LARGEST, LARGEST)] = setting(
        0, "First layer of relevancy: 0 all layers, -1 the last alone."
    )
    prompt: Count | None = setting(None, "Prompt of Fig. 6, from 0; None takes the mean over the prompts.")
    nearest_words: Positive = setting(5, "Nearest words of each text prompt.")
    replacement_forms: tuple[Annotated[str, Choices(tuple(FORMS))], ...] = setting(
        ("kind",), f"Forms that are fitted to each adapter's outputs; there are {', '.join(FORMS)}."
    )
    replacement_steps: Count = setting(
        300, "Steps of each form, and of the adapter's own method fitted to itself; 0 leaves replacements out."
    )
    on_image_error: OnImageError = setting_of(ImageReading, "on_image_error")
    workers: WorkerCount | None = setting_of(ImageReading, "workers")
    seed: Count = setting(0, "Of random orders, prompts and images of the controls, and of fits.")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rotations or any(rotation % 90 for rotation in self.rotations):
            raise ClipbiasError(f"rotations are {self.rotations}; give multiples of 90 degrees.")

    @property
    def images_at_once(self) -> int:
        """Images per step over all devices: `batch_size`, or what is fast here."""
        return self.batch_size or (_BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH)

    def what_counts(self) -> dict[str, object]:
        """The options that results depend on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _HOW}
