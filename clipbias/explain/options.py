"""What is asked of a study."""

import dataclasses
from typing import Annotated, Any

import jax

from clipbias.checks import LARGEST, Choices, Count, Range, check_fields, check_int
from clipbias.data.pipeline import ON_ERROR
from clipbias.data.workers import MOST_WORKERS
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import KIND_REDUCTIONS
from clipbias.explain.statistics import NORMALISATIONS

ZERO_SHOT_TEXTS = ("paper", "dataset")
# Images per batch where none is asked for. What a block makes of more of them leaves a CPU's caches.
_BATCH, _BATCH_ON_CPU = 32, 8
# Options that no result depends on.
_HOW = ("batch_size", "workers")


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What is asked of a study; every one is stored with its results.

    Attributes:
      batch_size: images per step over all devices; 0 takes 8 on a CPU, whose caches hold no more, and 32 elsewhere.
      images: at most so many images for everything but what is known of others already (`Study`), 0 for all. They are
        spread over the split.
      faithfulness_images: the same for perturbation, which runs every image over a hundred times.
      control_images: the same for the causal test of random prompts, a control; 0 leaves it out.
      training_images: at most so many training images for equivalent biases, spread over them; 0 for all.
      examples: number of pictures shown.
      explore_images: number of images that a reader of the report can explore, fewer where their maps would take more
        than 15 MB of the page.
      rotations: of the pictures of Fig. 6, in degrees counter-clockwise.
      layers: those of Fig. 6, from 0; empty takes the first, the middle and the last two.
      normalisation: of relevancy rows: "sum", "minmax" or "max".
      reduction: of attention over the tokens of a kind: "sum" or "mean".
      zero_shot_text: zero-shot's text in Fig. 2 to 4: "paper", which is "a photo of a {}." for every dataset, or
        "dataset", the template that it classifies with. Predictions are always made with the latter.
      start_layer: first layer of relevancy; 0 all, -1 the last.
      prompt: the prompt of Fig. 6: "mean" or a number from 0.
      on_image_error: "raise", or "skip" images that cannot be read.
      workers: threads that decode images; 0 takes one for each processor.
      seed: of the random order that faithfulness compares with.
    """

    batch_size: Count = 0
    images: Count = 0
    faithfulness_images: Count = 200
    control_images: Count = 200
    training_images: Count = 256
    examples: Annotated[int, Range(1, 1000)] = 4
    explore_images: Annotated[int, Range(1, 1000)] = 48
    rotations: tuple[Annotated[int, Range(-360, 360)], ...] = (0, 90, 180, 270)
    layers: tuple[Count, ...] = ()
    normalisation: Annotated[str, Choices(tuple(NORMALISATIONS))] = "sum"
    reduction: Annotated[str, Choices(KIND_REDUCTIONS)] = "sum"
    zero_shot_text: Annotated[str, Choices(ZERO_SHOT_TEXTS)] = "paper"
    start_layer: Annotated[int, Range(-LARGEST, LARGEST)] = 0
    prompt: int | str = "mean"
    on_image_error: Annotated[str, Choices(ON_ERROR)] = "raise"
    workers: Annotated[int, Range(0, MOST_WORKERS)] = 0
    seed: Count = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.rotations or any(rotation % 90 for rotation in self.rotations):
            raise ClipbiasError(f"rotations are {self.rotations}; give multiples of 90 degrees.")
        if self.prompt != "mean":
            check_int("prompt", self.prompt)

    @property
    def images_at_once(self) -> int:
        """Images per step: what is asked for, or what is fast here."""
        return self.batch_size or (_BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH)

    def what_counts(self) -> dict[str, Any]:
        """The options that results depend on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _HOW}
