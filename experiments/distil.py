"""Turns a tuned adapter into a plain CLIP that predicts as it does: a checkpoint for transformers, with a certificate.

    python -m experiments.distil --config.adapters=workdir/maple --config.output=workdir/distilled
    python -m experiments.distil --config.adapters=workdir/maple --config.output=workdir/distilled \\
        --config.dataset=folder --config.data_dir=photos

One vector per layer, LayerNorms and LoRA learn the adapter's predictions on unlabelled images: training and validation
images of the adapter's dataset, or those of a folder. The smallest that agrees with the adapter as the best does is
folded into the weights. What it loses is measured on images that were used nowhere else (docs/distil.md). Continues
where it stopped; a command that is finished says so again.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path

from etils import epath

import clipbias
from clipbias import hosts
from clipbias.constants import ADAPTER_FILE
from clipbias.data import Dataset, Split
from clipbias.data.user_images import image_list
from clipbias.distillation import distil_model, divide_images
from clipbias.errors import ClipbiasError
from clipbias.export import export
from clipbias.export.card import certified_sentences
from clipbias.identity import identity
from clipbias.io import check_new_folder, data_path
from clipbias.settings import as_json
from clipbias.training import placement
from clipbias.training.context import SweepContext
from clipbias.training.loop import RunOutputs
from clipbias.training.progress import Progress
from clipbias.training.workdir import open_workdir
from clipbias.tuning.adapter import Adapter, read_adapter
from configs.distil import DistilSettings
from experiments import common
from experiments.inputs import find_adapter, find_images, open_adapter, refuse_other_descriptions

# The note of an exported adapter that names the teacher, images, student and options that it was made of.
_MADE_OF = "distillation"


def main(settings: DistilSettings, workdir: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.WARNING)  # its notes on each file that it writes
    pair = find_adapter(settings.adapters)
    output = settings.output
    if pair is None or output is None:
        raise ClipbiasError("give an adapter and the folder to write: --config.adapters=FILE --config.output=FOLDER.")
    adapter, _ = pair
    with open_workdir(workdir, as_json(settings)):
        # Before the models, whose weights may have to be downloaded.
        unlabelled = find_unlabelled(settings, adapter)
        base = clipbias.load(settings.model or adapter.base, device="host")
        model = open_adapter(adapter, base, settings)
        student = base if settings.student is None else clipbias.load(settings.student, device="host")
        if isinstance(unlabelled, Dataset):
            refuse_other_descriptions(model, unlabelled)
        images = divide_images(unlabelled, model)
        context = SweepContext(
            student,
            {},
            settings.compute,
            placement.make_mesh(run=settings.mesh.run, data=settings.mesh.data),
            dtype=model.task.classifier.dtype,
            on_image_error=settings.on_image_error or "raise",
        )
        # The key holds all that the result depends on, so the same command finds its checkpoints and its result.
        key = identity([model, images, student, settings.options])[:12]
        checkpoints = workdir / "checkpoints" / key
        # Before hours of training: a folder that cannot be written is refused here.
        sentences = hosts.from_first(lambda: finished_sentences(output, key))
        words = "already; this command was finished before"
        if not sentences:
            with contextlib.closing(Progress(title="distil")) as bar:
                where = RunOutputs(checkpoints=checkpoints, progress=bar)
                distilled = distil_model(model, images, settings.options, context, where)
            sentences = list(distilled.sentences)
            if hosts.is_first():
                form = export(
                    dataclasses.replace(distilled.model, notes={**distilled.model.notes, _MADE_OF: key}), output
                )
                words = f"as a {form}"
        if hosts.is_first():
            epath.Path(checkpoints).rmtree(missing_ok=True)
            common.tell(*sentences, f"{output} holds it {words}.")


def finished_sentences(output: str, key: str) -> list[str]:
    """Reads the certificate of a command that was finished before; empty for an empty folder.

    Raises `ClipbiasError` where the folder holds something else.
    """
    file = data_path(output) / ADAPTER_FILE
    with contextlib.suppress(ClipbiasError):  # something else, which is refused below
        if file.is_file() and (notes := read_adapter(file).notes).get(_MADE_OF) == key:
            return certified_sentences(notes)
    check_new_folder(output)
    return []


def find_unlabelled(settings: DistilSettings, adapter: Adapter) -> Dataset | Split:
    """Finds images to fit, select and certify. Raises `ClipbiasError` without a dataset of the adapter's classes."""
    name = settings.dataset or str(adapter.notes.get("dataset") or "")
    if not name:
        raise ClipbiasError("no dataset; give --config.dataset=NAME, or dataset=folder with --config.data_dir.")
    try:
        dataset = common.load_dataset(settings, name)
    except ClipbiasError:
        if name != "folder":
            raise
        dataset = None
    if dataset is not None and list(dataset.class_names) == adapter.class_names:
        return dataset
    # Images without labels, in a folder without folders of the adapter's classes.
    if dataset is None or name == "folder":
        files = find_images(settings.data_dir, "data_dir")
        return image_list(files, [0 for _ in files], adapter.class_names)
    is_order = sorted(dataset.class_names) == sorted(adapter.class_names)
    words = "the adapter's classes in another order" if is_order else "other classes than the adapter"
    raise ClipbiasError(
        f"{name} has {words}; give images without labels: --config.dataset=folder --config.data_dir=FOLDER."
    )


if __name__ == "__main__":
    common.run(main)
