"""How runs are computed: batch sizes, memory, threads. No setting here changes a number."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Remat policies by name are those of `training.memory.REMATS`; this one selects the fastest that fits.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Compute:
    """How runs are computed. Nothing here changes a number.

    Attributes:
      eval_batch_size: images per evaluation step, over all devices.
      checkpoint_seconds: time between two checkpoints, about; 0 saves after every step.
      remat, class_chunks, micro_batch: how a step saves memory, see `training.memory`.
      workers: threads that decode images; 0 takes one for each processor.
      cache_gb: memory for images in gigabytes: two thirds for training images, one third for those of evaluation.
      trackers: programs that get the metrics besides `metrics.jsonl`, see `training.trackers`.
      profile: "steps" traces a few steps of each training.
    """

    eval_batch_size: int = 100
    checkpoint_seconds: float = 60.0
    remat: str = AUTO
    class_chunks: int = 0
    micro_batch: int = 0
    workers: int = 0
    cache_gb: float = 3.0
    trackers: tuple[str, ...] = ()
    profile: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Compute":
        """The fields of the same names in a configuration."""
        found: dict[str, Any] = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**found | {"trackers": tuple(found["trackers"])})
