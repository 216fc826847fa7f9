"""Loading a checkpoint: seconds and peak memory for each format, in processes of their own."""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip import convert
from clipbias.clip.config import ClipConfig, to_hugging_face
from clipbias.clip.flax_file import FLAX_WEIGHTS, write_flax
from clipbias.clip.params import empty_params
from clipbias.clip.tables import FLAX
from clipbias.clip.tokenizer_files import CLIP_VOCABULARY
from clipbias.io import write_tensors, write_text
from tools.benchmarks.model import geometry
from tools.benchmarks.startup import child

_LOAD = """
import json, time
import jax
import clipbias, clipbias.clip, transformers.models.clip
from tools.benchmarks.worker import process_memory
before = process_memory()[0]
began, cpu = time.perf_counter(), time.process_time()
clip = clipbias.load(SOURCE, activation="quick_gelu")
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params))
extra = process_memory()[1] - before
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "extra_bytes": extra, "weights_bytes": weights}))
"""


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads each of `arguments.files`, or what this package writes itself; the files are in the page cache.

    `peak_over_weights` is the most memory beyond what the imported libraries take, by the bytes of float32 weights.
    """
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in arguments.files or write(Path(folder), geometry(arguments.geometry, layers=arguments.layers)):
            code = _LOAD.replace("SOURCE", repr(str(source)))
            runs = [json.loads(child(code).splitlines()[-1]) for _ in range(arguments.repeats + 1)][1:]
            peak = max(run["extra_bytes"] for run in runs)
            result[Path(source).name] = {
                **{name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu_seconds")},
                "peak_bytes": peak,
                "peak_over_weights": peak / runs[0]["weights_bytes"],
            }
    return {"name": "loading", "sources": result}


def write(folder: Path, config: ClipConfig) -> list[Path]:
    """Writes random weights in every format that this package writes; without a tokenizer, so CLIP's own is used."""
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary_size=CLIP_VOCABULARY))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), empty_params(config))
    sources = [folder / "safetensors", folder / "flax"]
    for source in sources:
        source.mkdir()
        write_text(source / "config.json", json.dumps(to_hugging_face(config)))
    write_tensors(sources[0] / "model.safetensors", convert.to_tensors(config, params), {"format": "pt"})
    write_flax(sources[1] / FLAX_WEIGHTS, convert.to_tensors(config, params, FLAX))
    return sources
