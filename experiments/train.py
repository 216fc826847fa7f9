"""Tunes one method on one dataset and evaluates it.

    python -m experiments.train --config=configs/train.py:bias --config.model=demo --config.dataset=demo/digits \
        --workdir=workdir/digits

Continues where it stopped. Writes `metrics.jsonl`, `result.json` and `adapter.safetensors`.
"""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

import clipbias
from clipbias.files import write_text
from clipbias.training import mesh as meshes
from clipbias.training import single
from clipbias.training.forecast import Forecast, device_rate
from clipbias.training.settings import Recipe
from clipbias.training.workdir import ADAPTER, open_workdir
from experiments import app

_CONFIG = "configs/train.py"


def main(config: ConfigDict, workdir: Path) -> None:
    if config.dry_run:
        dry_run(config)
        return
    with open_workdir(workdir, app.plain(config)):
        clip = clipbias.load(config.model)
        dataset = app.load_dataset(config, config.dataset)
        result = single.train_and_evaluate(
            clip,
            dataset,
            config.method,
            dict(config.method_options),
            Recipe.from_config(config),
            shots=config.shots,
            seed=config.seed,
            dtype=config.dtype,
            mesh=meshes.make_mesh(**config.mesh),
            eval_batch_size=config.eval_batch_size,
            checkpoint_seconds=config.checkpoint_seconds,
            on_image_error=config.on_image_error,
            workdir=workdir,
            remat=config.remat,
            class_chunks=config.class_chunks,
        )
        if jax.process_index() == 0:
            write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
            app.tell(f"{result['method']} on {result['dataset']}: {result['accuracy']:.2f} % of test images")
            app.tell(f"{result['parameters']:,} parameters; adapter in {workdir / ADAPTER}")


def dry_run(config: ConfigDict) -> None:
    """Prints what the run would do and need; trains and writes nothing."""
    clip, dataset = clipbias.load(config.model), app.load_dataset(config, config.dataset)
    mesh, recipe = meshes.make_mesh(**config.mesh), Recipe.from_config(config)
    images = single.training_images(dataset, shots=config.shots, seed=config.seed, on_image_error="raise")
    task, step = single.fit(
        *(clip, dataset, config.method, dict(config.method_options), recipe),
        dtype=config.dtype,
        mesh=mesh,
        remat=config.remat,
        class_chunks=config.class_chunks,
    )
    title = f"{config.method} on {config.dataset}, {config.shots} shots"
    forecast = Forecast(title, (task,), recipe, step, len(images), len(dataset.split("test")), mesh)
    print(forecast.describe(device_rate()))


if __name__ == "__main__":
    app.run(main, _CONFIG)
