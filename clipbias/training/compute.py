"""How runs are computed: batch sizes, memory, threads. No setting here changes a number."""

import dataclasses
from typing import Annotated

from clipbias.checks import Choices, Positive, Range, check_fields
from clipbias.data.pipeline import BATCH_SIZE
from clipbias.data.reading import ImageReading, WorkerCount
from clipbias.settings import setting, setting_of

# Remat policies by name are those of `training.memory.REMATS`; this one selects the fastest that fits.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Compute:
    """How runs are computed. Nothing here changes a number."""

    eval_batch_size: Positive = setting(BATCH_SIZE, "Images per step of evaluation, over all devices.")
    remat: str = setting(
        AUTO,
        'What the backward pass keeps of blocks: "products", "half", "tokens" or "auto"; from the fastest to the '
        'smallest; "auto" is the fastest that fits the device\'s memory.',
    )
    class_chunks: Positive | None = setting(
        None, "Parts in which a device takes the classes, one after another, to save memory; None selects."
    )
    workers: WorkerCount | None = setting_of(ImageReading, "workers")
    cache_gb: Annotated[float, Range(0)] = setting(
        3.0,
        "Memory for images in gigabytes, of all runs of a sweep together; two thirds for training images, one third "
        "for those of evaluation.",
    )
    checkpoint_seconds: Annotated[float, Range(0)] = setting(
        60.0, "Least time between two checkpoints of a run; 0 saves after every step."
    )
    trackers: tuple[str, ...] = setting(
        ("auto",),
        'Who gets the metrics of training steps besides metrics.jsonl; "tensorboard", "wandb" and "trackio", where '
        'they are installed; "auto" is TensorBoard where tensorboardX is. () for nobody.',
    )
    profile: Annotated[str, Choices(("steps",))] | None = setting(
        None, '"steps" writes a trace of a few training steps; for XProf or Perfetto, below the folder of the metrics.'
    )

    def __post_init__(self) -> None:
        check_fields(self)
