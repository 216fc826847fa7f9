"""Interprets tuned adapters: words nearest to their prompts, norms, and PCA and t-SNE over datasets and seeds.

    python -m experiments.interpret --config.adapters=workdir/demo --workdir=workdir/interpret
    python -m experiments.interpret --config.adapters='workdir/demo/adapters/bias-*' --config.images=32

Writes `interpretation.json`, `words.csv`, `norms.csv`, figures as PDF, PNG and CSV, and `interpretation.html`.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import clipbias
from clipbias.data.images import pictures
from clipbias.errors import ClipbiasError
from clipbias.explain.interpret import InterpretOptions, Learned, adapter_names, interpret, require_one_base
from clipbias.report.interpretation import write_interpretation
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import progress
from clipbias.training.workdir import ADAPTER, open_workdir
from clipbias.tuning.adapter import Adapter
from experiments import common
from experiments.inputs import find_adapters, split

_CONFIG = "configs/interpret.py"


def main(config: ConfigDict, workdir: Path) -> None:
    began = time.monotonic()
    with open_workdir(workdir, common.plain(config)):
        found = find_adapters(config.adapters)
        require_one_base([(source, adapter) for adapter, source in found])
        clip = clipbias.load(config.model or found[0][0].base)
        names = adapter_names([source for _, source in found], generic=ADAPTER)
        images = read_images(config, [adapter for adapter, _ in found], clip.config.vision.image_size)
        own = split(config.own_methods)
        learned = [
            Learned(
                name,
                source,
                adapter,
                adapter.task(clip, own_methods=own),
                images.get(str(adapter.notes.get("dataset"))),
            )
            for name, (adapter, source) in zip(names, found, strict=True)
        ]
        options = InterpretOptions(**{field.name: config[field.name] for field in dataclasses.fields(InterpretOptions)})
        with progress(len(learned), unit="adapter", title="interpret") as bar:
            result = interpret(clip, learned, options, advance=lambda name: bar.advance(1, {"adapter": name}))
        if jax.process_index() == 0:
            page = write_interpretation(result, workdir)
            for projection in result["projections"]:
                common.tell(f"{projection['tower']} tower, {projection['arrays']}: {projection['sentence']}")
            common.tell(f"page: {page}")
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"adapters": len(learned), "seconds": round(time.monotonic() - began, 4)})


def read_images(config: ConfigDict, adapters: Sequence[Adapter], size: int) -> dict[str, np.ndarray]:
    """Test images of every adapter's dataset, evenly spread over it: uint8 `[B, R, R, 3]` by the dataset's name."""
    images: dict[str, np.ndarray] = {}
    for adapter in adapters if config.images else ():
        name = adapter.notes.get("dataset")
        if not name:
            raise ClipbiasError("an adapter does not say on which dataset it was trained; leave --config.images out.")
        if name in images:
            continue
        split = common.load_dataset(config, name).split("test")
        images[name] = pictures(
            split, np.unique(np.linspace(0, len(split) - 1, config.images).round().astype(int)), size
        )
    return images


if __name__ == "__main__":
    common.run(main, _CONFIG)
