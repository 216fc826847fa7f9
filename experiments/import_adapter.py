"""Makes an adapter of a checkpoint that CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC wrote.

    python -m experiments.import_adapter --config.file=output/VLPromptLearner/model.pth.tar-50 \\
        --config.output=promptsrc.safetensors --config.dataset=oxford_pets --config.data_dir=/data

Nothing in the checkpoint is run, and PyTorch is not needed. The adapter is evaluated, explained, exported and distilled
as any other (docs/distil.md).
"""

import contextlib

import clipbias
from clipbias import data
from clipbias.clip.formats import open_safetensors_file
from clipbias.errors import ClipbiasError
from clipbias.io import data_path
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.method import parameter_count
from clipbias.tuning.prompts import ClassList
from clipbias.tuning.trainer_files import import_adapter
from configs.import_adapter import ImportSettings
from experiments import common
from experiments.inputs import listed


def main(settings: ImportSettings) -> None:
    if settings.file is None or settings.output is None:
        raise ClipbiasError("give the checkpoint and the adapter to write: --config.file=FILE --config.output=FILE.")
    if settings.classes is not None and settings.dataset is not None:
        raise ClipbiasError("a dataset has class names of its own; give --config.classes or --config.dataset.")
    output = data_path(settings.output)
    is_adapter = False
    with contextlib.suppress(ClipbiasError), open_safetensors_file(output) as file:
        is_adapter = "clipbias" in (file.metadata() or {})
    if output.exists() and not is_adapter:  # such as the checkpoint itself
        raise ClipbiasError(f"{output} exists and is no adapter of clipbias on a disk; give another --config.output.")
    classes: tuple[str, ...] | ClassList | None = listed(settings.classes, "class names")
    notes = {}
    if settings.dataset is not None:
        classes = data.load(settings.dataset, data_dir=settings.data_dir)
        notes["dataset"] = settings.dataset
    clip = clipbias.load(settings.model, device="host")
    model = import_adapter(settings.file, clip, classes, position=settings.position, notes=notes)
    write_adapter(settings.output, model)
    names = ", ".join(model.class_names[:5]) + (", …" if len(model.class_names) > 5 else "")
    count, method = parameter_count(model.learnables)["total"], model.task.method_name
    common.tell(
        f"{settings.output}: {method} with {count:,} parameters for {len(model.class_names)} classes ({names})."
    )


if __name__ == "__main__":
    common.run(main)
