"""The section `interpret` of `explain`: what adapters learned, all of them together."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import clipbias
from clipbias import data
from clipbias.data.images import pictures
from clipbias.errors import ClipbiasError
from clipbias.explain.interpret import InterpretOptions, Learned, adapter_names, interpret, require_one_base
from clipbias.report import write_interpretation
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import progress, say
from clipbias.training.workdir import ADAPTER
from experiments import common
from experiments.command_line import split
from experiments.inputs import AdapterFile

INTERPRET = "interpret"
IMAGES = 16  # of each dataset, for the mean norm of their tokens


def interpret_adapters(
    config: ConfigDict,
    groups: Mapping[str, Sequence[AdapterFile]],
    workdir: Path,
    *,
    load: Callable[[str], data.Dataset] | None = None,
) -> None:
    """Writes words, norms and projections of adapters of one model, whatever their datasets.

    Args:
      config: of `explain`.
      groups: the adapters by dataset.
      workdir: of the command.
      load: opens a dataset, whose image tokens then stand beside the norms of what was learned. `None` where no other
        section was asked for: no images are read, and adapters that cannot be interpreted are an error. Else the reason
        is said in one line.
    """
    began, adapters = time.monotonic(), [pair for group in groups.values() for pair in group]
    try:
        if not adapters:
            raise ClipbiasError("there are no adapters to interpret; give --config.adapters=FILES_OR_FOLDERS.")
        require_one_base([(source, adapter) for adapter, source in adapters])
        clip = clipbias.load(config.model or adapters[0][0].base)
        names = adapter_names([source for _, source in adapters], generic=ADAPTER)
        own_methods, size = split(config.own_methods), clip.preprocessing.side
        images: dict[str, np.ndarray | None] = {}
        for name, group in groups.items():
            pixels = read_images(load(name).split(config.split), size) if load and group else None
            images |= dict.fromkeys((source for _, source in group), pixels)
        learned = [
            Learned(name, source, adapter, adapter.task(clip, own_methods=own_methods), images[source])
            for name, (adapter, source) in zip(names, adapters, strict=True)
        ]
        options = InterpretOptions(config.nearest_words, deeper=config.deeper_words, change=config.project_change)
        with progress(len(learned), unit="adapter", title=INTERPRET) as bar:
            result = interpret(clip, learned, options, advance=lambda name: bar.advance(1, {"adapter": name}))
    except ClipbiasError as error:
        if load is None:
            raise
        say(f"{INTERPRET}: {error}")
        return
    common.tell(f"interpretation: {write_interpretation(result, workdir)}")
    if load is None:
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"adapters": len(learned), "seconds": round(time.monotonic() - began, 4)})


def read_images(split: data.Split, size: int) -> np.ndarray:
    """Some images, spread over a split: uint8 `[B, R, R, 3]`."""
    return pictures(split, np.unique(np.linspace(0, len(split) - 1, IMAGES).round().astype(int)), size)
