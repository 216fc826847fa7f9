"""Exports a tuned adapter: a Hugging Face checkpoint, a classifier head, a StableHLO program, or a PEFT adapter.

    python -m experiments.export workdir/demo/adapters/bias-demo_fashion-16shots-seed1.safetensors workdir/export/bias

The first argument is an adapter file or a finished run's folder, the second a new folder. What a method adds to CLIP
decides its form (docs/export.md); --form chooses another. A model card lies beside it.
"""

import logging
from collections.abc import Sequence

from absl import flags

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.export import FORMS, export
from clipbias.io import user_path
from clipbias.terminal import printable
from experiments import common
from experiments.inputs import find_adapter

_FORM = flags.DEFINE_enum("form", None, FORMS, "What to write; by default what fits the method.")
_OWN_METHODS = flags.DEFINE_list("own_methods", [], "The file or module of a method of your own that the adapter uses.")
_BASE_MODEL = flags.DEFINE_string("base_model", None, "Where the base model is, if it has moved.")


def main(names: Sequence[str]) -> int:
    """Exports; returns the exit status."""
    for library in ("jax", "transformers"):  # their notes on missing backends and each file they write
        logging.getLogger(library).setLevel(logging.WARNING)
    if len(names) != 2:
        raise ClipbiasError("give an adapter and the folder to write: clipbias export ADAPTER FOLDER.")
    adapter, path = find_adapter(names[0])
    clip = clipbias.load(_BASE_MODEL.value or adapter.base)
    form = export(adapter, clip, names[1], form=_FORM.value, own_methods=_OWN_METHODS.value)
    print(f"{printable(path)} as a {form}:")
    for written in sorted(user_path(names[1]).iterdir()):
        print(f"  {printable(written)} ({written.stat().st_size / 1000:,.1f} kB)")
    return 0


if __name__ == "__main__":
    common.run_arguments(main, "ADAPTER FOLDER")
