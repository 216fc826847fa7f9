"""Exports a tuned adapter: a Hugging Face checkpoint, a classifier head, a program, an ONNX file, or a PEFT adapter.

    python -m experiments.export --config.output=workdir/export/bias \\
        --config.adapters=workdir/demo/adapters/bias-demo_fashion-16shots-seed1.safetensors

Writes a new folder. What a method adds to CLIP decides its form (docs/export.md); --config.form chooses another. A
model card lies beside it.
"""

import logging

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.export import export
from clipbias.io import user_path
from configs.export import ExportSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter


def main(settings: ExportSettings) -> None:
    for library in ("jax", "transformers"):  # their notes on missing backends and each file they write
        logging.getLogger(library).setLevel(logging.WARNING)
    pair = find_adapter(settings.adapters)
    if pair is None or settings.output is None:
        raise ClipbiasError("give an adapter and the folder to write: --config.adapters=FILE --config.output=FOLDER.")
    adapter, path = pair
    clip = clipbias.load(settings.model or adapter.base, device="host")
    own_methods = split(settings.own_methods)
    form = export(adapter.bind(clip, own_methods=own_methods), settings.output, form=settings.form)
    common.tell(f"{path} in the form {form}:")
    for written in sorted(user_path(settings.output).iterdir()):
        common.tell(f"  {written} ({written.stat().st_size / 1000:,.1f} kB)")


if __name__ == "__main__":
    common.run(main)
