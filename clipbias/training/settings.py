"""What the cells of a grid share besides the recipe."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from clipbias.checks import LARGEST, Choices, Range, check_fields, check_texts, shown
from clipbias.clip.precision import DTYPES
from clipbias.data import inspection, protocols
from clipbias.data.pipeline import ON_ERROR
from clipbias.data.workers import MOST_WORKERS
from clipbias.errors import ClipbiasError
from clipbias.training.profile import PROFILES
from clipbias.training.rates import Rates
from clipbias.training.trackers import AUTO as OWN_TRACKERS
from clipbias.training.trackers import check_trackers

# Of `remat`: the fastest way that fits the device's memory.
AUTO = "auto"
# What becomes of a grid some of whose datasets cannot be used: it does not begin, or their cells are left out.
ON_MISSING = ("raise", "skip")

_Number = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """What all cells of a grid have in common besides the recipe.

    Attributes:
      method_options: options by method name.
      dtype: compute type by name, what a device takes by itself having been looked up.
      eval_batch_size: images per evaluation step.
      checkpoint_seconds: least time between two checkpoints of a pack.
      on_image_error: "raise" or "skip" images that cannot be read.
      protocol: a name of `data.protocols.PROTOCOLS`.
      targets: datasets that a protocol evaluates on besides; `None` takes the literature's.
      remat, class_chunks, micro_batch: how a step saves memory, see `training.memory`.
      workers: threads that decode images, which all runs share; 0 takes one for each processor. They change no number.
      cache_gb: memory for images, in gigabytes: two thirds for those of training, as pixels or as their files
        (`data.images.ImageCache`), and one third for those of evaluation, as large as the model takes them. It changes
        no number.
      check_images, on_missing: how images are looked at before anything is trained, and what becomes of the cells whose
        datasets cannot be used (`training.readiness`). They change no number.
      trackers: who is told the metrics besides `metrics.jsonl`, see `training.trackers`.
      profile: "steps" traces a few steps of each training, see `training.profile`.
      rates: learning rates of some methods, or of some on a dataset, in place of the recipe's.
      inputs: what datasets are read with besides their names, such as a template: numbers depend on it. What differs
        from dataset to dataset is a mapping by their names.
    """

    method_options: Mapping[str, Mapping[str, Any]]
    dtype: Annotated[str, Choices(DTYPES)]
    eval_batch_size: Annotated[int, Range(1, LARGEST)]
    checkpoint_seconds: _Number
    on_image_error: Annotated[str, Choices(ON_ERROR)]
    protocol: Annotated[str, Choices(tuple(protocols.PROTOCOLS))] = "few_shot"
    targets: tuple[str, ...] | None = None
    remat: str = AUTO
    class_chunks: int = 0
    micro_batch: Annotated[int, Range(0, LARGEST)] = 0
    workers: Annotated[int, Range(0, MOST_WORKERS)] = 0
    cache_gb: _Number = 3.0
    check_images: Annotated[str, Choices(inspection.HOW)] = "headers"
    on_missing: Annotated[str, Choices(ON_MISSING)] = "raise"
    trackers: tuple[str, ...] = (OWN_TRACKERS,)
    profile: Annotated[str, Choices(PROFILES)] = ""
    rates: Rates = dataclasses.field(default_factory=Rates)
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts("targets", self.targets or ())
        check_texts("trackers", self.trackers)
        check_trackers(self.trackers)
        check_fields(self)
        given: Any = self.method_options  # whose insides `check_fields` does not see
        if not isinstance(given, Mapping):
            raise ClipbiasError(f"method_options is {shown(given)}; give options by method name.")
        for name, options in given.items():
            if not isinstance(options, Mapping):
                raise ClipbiasError(f"the options of {name!r} are {shown(options)}; give them by name.")
