"""Makes the bias that a tuned adapter amounts to an adapter itself, and tells what it keeps of the gain.

    python -m experiments.amounts --config.adapter=workdir/ivlp --config.kind=vector --workdir=workdir/amounts

The bias is measured on training images and evaluated on test images, beside the tuned model and the frozen one. Writes
`adapter.safetensors`, an adapter of bias tuning as any other, and `result.json`.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import clipbias
from clipbias.checks import check_choice
from clipbias.errors import ClipbiasError
from clipbias.explain.amounts_section import measure_model, missing, outcomes_of
from clipbias.explain.options import StudyOptions
from clipbias.explain.replacement import METHODS, REFERENCE, TUNED, as_adapter
from clipbias.explain.study import Study
from clipbias.explain.uncertainty import Estimate, kept
from clipbias.io import write_text
from clipbias.training import mesh as meshes
from clipbias.training.memory import explain_exhaustion
from clipbias.training.metrics import MetricWriter
from clipbias.training.workdir import ADAPTER, open_workdir
from clipbias.tuning.adapter import write_adapter
from experiments import common
from experiments.explain import advance_bars, devices, models
from experiments.inputs import find_adapter, split

_CONFIG = "configs/amounts.py"


def main(config: ConfigDict, workdir: Path) -> None:
    began = time.monotonic()
    check_choice("kind", config.kind, tuple(METHODS))
    if not config.adapter:
        raise ClipbiasError("no adapter; give --config.adapter=FILE_OR_FOLDER.")
    adapter, source = find_adapter(config.adapter)
    name = config.dataset or adapter.notes.get("dataset", "")
    if not name:
        raise ClipbiasError("the adapter does not say on which dataset it was trained; give --config.dataset=NAME.")
    mesh = meshes.make_mesh(**config.mesh)
    exhaustion = explain_exhaustion("lower --config.batch_size.")
    with open_workdir(workdir, common.plain(config)), exhaustion, advance_bars() as advance:
        dataset = common.load_dataset(config, name)
        clip = clipbias.load(config.model or adapter.base)
        own = split(config.own_methods)
        options = StudyOptions(
            batch_size=config.batch_size,
            images=config.image_limit,
            amounts_images=config.amounts_images,
            workers=config.workers,
            on_image_error=config.on_image_error,
        )
        study = Study(
            models(clip, dataset, [(adapter, source)], config.dtype, own_methods=own),
            dataset.split("test"),
            options,
            workdir,
            training=dataset.split("train"),
            devices=devices(mesh),
            advance=advance,
        )
        model, forms = study.tuned[0], (REFERENCE, config.kind, TUNED)
        if reason := missing(study, model):
            raise ClipbiasError(f"{adapter.method} amounts to no bias: {reason}")
        amounts, images = measure_model(study, model)
        bias = as_adapter(adapter, model.task, model.task.init(model.seed), amounts, config.kind, images=images)
        rows = outcomes_of(study, model, amounts, forms)
        shares = kept(rows, forms)
        accuracy = {form: 100 * float(rows["correct"][:, i].mean()) for i, form in enumerate(forms)}
        result = {
            "method": adapter.method,
            "dataset": name,
            "kind": config.kind,
            "training_images": images,
            "images": len(rows["images"]),
            "accuracy": accuracy[config.kind],
            "accuracies": accuracy,
            "kept": {outcome: numbers[config.kind] for outcome, numbers in shares.items()},
            "gain": {outcome: _number(numbers[TUNED]) for outcome, numbers in shares.items()},
        }
        with MetricWriter(workdir) as metrics:
            seconds = round(time.monotonic() - began, 4)
            shown = {f"accuracy/{form}": value / 100 for form, value in accuracy.items()}
            metrics.write(1, {**shown, "images": len(rows["images"]), "seconds": seconds})
        if jax.process_index() == 0:
            write_adapter(workdir / ADAPTER, bias)
            write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
            for line in sentences(result):
                common.tell(line)
            common.tell(f"adapter: {workdir / ADAPTER}")


def _number(estimate: Estimate) -> dict[str, Any]:
    return {name: estimate[name] for name in ("value", "low", "high")}


def sentences(result: dict[str, Any]) -> list[str]:
    """What was found, in a line each."""
    accuracy, kind = result["accuracies"], result["kind"]
    what = {"vector": "one vector per layer", "kind": "two vectors per layer"}[kind]
    lines = [
        f"{result['method']} on {result['dataset']}: {accuracy[TUNED]:.2f} % of {result['images']} test images; "
        f"the frozen model {accuracy[REFERENCE]:.2f} %; with what it amounts to as {what} {accuracy[kind]:.2f} %"
    ]
    for outcome, name in (("log_likelihood", "log-likelihood"), ("accuracy", "accuracy")):
        number = result["kept"][outcome]
        if number["share"] is None:
            lines.append(f"{name}: the gain's 95 % interval includes 0, so there is nothing to keep a share of")
            continue
        low, share, high = (100 * number[key] for key in ("share_low", "share", "share_high"))
        lines.append(f"{name}: it keeps {share:.0f} % of the gain (95 % interval {low:.0f} to {high:.0f} %)")
    return lines


if __name__ == "__main__":
    common.run(main, _CONFIG)
