"""What is asked of a study."""

import dataclasses
from typing import Any

from clipbias.checks import LARGEST, check_choice, check_int, check_number, shown
from clipbias.data.pipeline import ON_ERROR
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import REDUCTIONS
from clipbias.explain.statistics import NORMALISATIONS


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What is asked of a study; every one is stored with its results.

    Attributes:
      batch_size: images per step over all devices.
      images: at most so many images for attention statistics and interventions, 0 for all. They are spread over the
        split.
      faithfulness_images: the same for perturbation, which runs every image over a hundred times.
      examples: number of pictures shown.
      rotations: of the pictures of Fig. 6, in degrees.
      layers: those of Fig. 6, from 0; empty takes the first, the middle and the last two.
      normalisation: of relevancy rows: "sum", "minmax" or "max".
      reduction: of attention over the tokens of a kind: "sum" or "mean".
      start_layer: first layer of relevancy; 0 all, -1 the last.
      prompt: the prompt of Fig. 6: "mean" or a number from 0.
      on_image_error: "raise", or "skip" images that cannot be read.
      save_seconds: least time between two saves of an unfinished section.
      seed: of the random order that faithfulness compares with.
    """

    batch_size: int = 32
    images: int = 0
    faithfulness_images: int = 200
    examples: int = 4
    rotations: tuple[int, ...] = (0, 90, 180, 270)
    layers: tuple[int, ...] = ()
    normalisation: str = "sum"
    reduction: str = "sum"
    start_layer: int = 0
    prompt: int | str = "mean"
    on_image_error: str = "raise"
    save_seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("batch_size", self.batch_size, lowest=1)
        for name in ("images", "faithfulness_images", "seed"):
            check_int(name, getattr(self, name))
        check_int("examples", self.examples, lowest=1, highest=1000)
        for name in ("rotations", "layers"):
            if not isinstance(getattr(self, name), tuple):
                raise ClipbiasError(f"{name} is {shown(getattr(self, name))}; it must be a list of numbers.")
        for rotation in self.rotations:
            check_int("a rotation", rotation, lowest=-360, highest=360)
        if not self.rotations or any(rotation % 90 for rotation in self.rotations):
            raise ClipbiasError(f"rotations are {self.rotations}; give multiples of 90 degrees.")
        for layer in self.layers:
            check_int("a layer", layer)
        check_choice("normalisation", self.normalisation, tuple(NORMALISATIONS))
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_int("start_layer", self.start_layer, lowest=-LARGEST)
        if self.prompt != "mean":
            check_int("prompt", self.prompt)
        check_choice("on_image_error", self.on_image_error, ON_ERROR)
        check_number("save_seconds", self.save_seconds, lowest=0)

    def what_counts(self) -> dict[str, Any]:
        """The options that results depend on."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("batch_size", "save_seconds")}
