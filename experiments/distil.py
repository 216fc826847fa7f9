"""Turns a tuned adapter into a plain CLIP that predicts as it does: a checkpoint for transformers, with a certificate.

    python -m experiments.distil --config.adapters=workdir/maple --config.output=workdir/distilled
    python -m experiments.distil --config.adapters=workdir/maple --config.output=workdir/distilled \\
        --config.dataset=folder --config.data_dir=photos

One vector per layer, LayerNorms and LoRA learn the adapter's predictions on unlabelled images: training and validation
images of the adapter's dataset, or those of a folder. The smallest that agrees with the adapter as the best does is
folded into the weights. What it loses is measured on images that were used nowhere else (docs/distil.md). Continues
where it stopped.
"""

import dataclasses
import logging
from pathlib import Path

import clipbias
from clipbias import TunedModel, hosts
from clipbias.data.user_images import labelled_split
from clipbias.distillation import DistilImages, distil_model, images_of_dataset, images_without_labels
from clipbias.errors import ClipbiasError
from clipbias.settings import as_json
from clipbias.training import mesh as meshes
from clipbias.training.job import Logging
from clipbias.training.predictions import fingerprint
from clipbias.training.progress import Progress
from clipbias.training.spec import stable_hash
from clipbias.training.sweep_context import SweepContext
from clipbias.training.workdir import open_workdir
from configs.distil import DistilSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter, find_images

_CONFIG = "configs/distil.py"


def main(settings: DistilSettings, workdir: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.WARNING)  # its notes on each file that it writes
    pair = find_adapter(settings.adapters)
    if pair is None or settings.output is None:
        raise ClipbiasError("give an adapter and the folder to write: --config.adapters=FILE --config.output=FOLDER.")
    adapter, _ = pair
    with open_workdir(workdir, as_json(settings)):
        base = clipbias.load(settings.model or adapter.base)
        model = TunedModel.of(adapter, base, own_methods=split(settings.own_methods), dtype=settings.dtype)
        student = base if settings.student is None else clipbias.load(settings.student)
        images = find_unlabelled(settings, model)
        context = SweepContext(
            student,
            {},
            settings.compute,
            meshes.make_mesh(run=settings.mesh.run, data=settings.mesh.data),
            dtype=settings.dtype,
            on_image_error=settings.on_image_error,
        )
        teacher = fingerprint(model.task, model.learnables, adapter.method, images.fitted)
        key = stable_hash([teacher, student.fingerprint, dataclasses.asdict(settings.options)])
        distilled = distil_model(
            model,
            images,
            settings.options,
            context,
            Logging(
                checkpoints=workdir / "checkpoints" / key,
                checkpoint_seconds=settings.compute.checkpoint_seconds,
                progress=Progress(0, title="distil"),
            ),
        )
        if hosts.is_first():
            form = distilled.model.export(settings.output)
            common.tell(*distilled.certificate.sentences())
            common.tell(f"{settings.output} holds it as a {form}.")


def find_unlabelled(settings: DistilSettings, model: TunedModel) -> DistilImages:
    """The images to fit, select and certify on.

    Raises:
      ClipbiasError: there is no dataset, or it has other classes than the model.
    """
    name = settings.dataset or str(model.notes.get("dataset") or "")
    if not name:
        raise ClipbiasError("no dataset; give --config.dataset=NAME, or dataset=folder with --config.data_dir.")
    if name == "folder":
        try:
            dataset = common.load_dataset(settings, name)
        except ClipbiasError:  # images without folders of classes
            dataset = None
        if dataset is None or tuple(dataset.class_names) != model.class_names:
            files = find_images(settings.data_dir)
            return images_without_labels(labelled_split(files, [0 for _ in files], model.class_names))
    else:
        dataset = common.load_dataset(settings, name)
        if tuple(dataset.class_names) != model.class_names:
            raise ClipbiasError(
                f"{name} has {len(dataset.class_names)} classes, not the adapter's {len(model.class_names)}, or not in "
                "their order; give images without labels: --config.dataset=folder --config.data_dir=FOLDER."
            )
    return images_of_dataset(dataset)


if __name__ == "__main__":
    common.run(main, _CONFIG)
