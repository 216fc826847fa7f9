"""All that the paper asks of one machine: three sweeps, then the causal test of each dataset.

    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab
    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab --config.part=2/4

Prints a plan first: runs, images to decode and memory. The work folder has a folder of `table1` for fewer shots
(`few_shot`), for the most shots with more seeds (`most_shots`) and for `base_to_new`, and a study of `explain` for each
dataset in `why`. The same command continues; what is finished is not repeated. Independent
jobs share the work with `--config.part`; the causal test of a dataset begins when all of its adapters are there.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import clipbias
from clipbias import hosts
from clipbias.data import catalog
from clipbias.errors import ClipbiasError
from clipbias.io import read_json
from clipbias.settings import as_json, convert
from clipbias.training.sweep import parse_part
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning import Kind, registry
from clipbias.tuning.feature_method import sampling_of
from configs.explain import ExplainSettings
from configs.lab import LabSettings
from configs.table1 import Table1Settings
from experiments import common, explain, table1

_CONFIG = "configs/lab.py"
MOST_SHOTS, WHY = "most_shots", "why"


def main(settings: LabSettings, workdir: Path) -> None:
    if settings.dry_run:
        table1.dry_run(*stages(settings).values())
        common.tell(*describe_plan(settings))
        return
    if hosts.multi_process():
        raise ClipbiasError("a lab runs in one process on all devices of a machine; share it with --config.part=1/4.")
    common.tell(*describe_plan(settings))
    unfinished = []
    for name, stage in stages(settings).items():
        unfinished += _sweep(name, stage, workdir / name)
    if settings.causal_images:
        common.tell(*causal_tests(settings, workdir))
    if unfinished:
        raise ClipbiasError(" ".join(unfinished))


def _sweep(name: str, stage: Table1Settings, workdir: Path) -> list[str]:
    """Runs a sweep without tables, which may not mix the policies of ImageNet and others; says what failed."""
    with open_workdir(workdir, as_json(stage), part=parse_part(stage.part)):
        inputs = table1.prepare(stage)
        note_model(workdir, inputs.context.clip)
        specs, rows = table1.run(inputs, workdir)
    common.tell(f"{name}: {len(rows)} of {len(specs)} runs are there")
    failed = [row["error"] for row in rows if row["status"] != "ok"]
    return [f"{name}: {len(failed)} runs failed; the first one: {failed[0]}"] if failed else []


def stages(settings: LabSettings) -> dict[str, Table1Settings]:
    """The settings of `table1` by the folder of their sweep."""
    most = max(settings.shots)
    fewer = tuple(shots for shots in settings.shots if shots < most)
    sweeps: dict[str, Table1Settings] = {}
    if fewer:
        trained = tuple(name for name in settings.methods if registry.make_method(name).uses_images)
        sweeps["few_shot"] = convert(settings, Table1Settings, methods=trained, shots=fewer)
    sweeps[MOST_SHOTS] = convert(settings, Table1Settings, shots=(most,), seeds=settings.more_seeds)
    if settings.base_to_new:
        sweeps["base_to_new"] = convert(
            settings, Table1Settings, methods=settings.base_to_new, shots=(most,), protocol="base_to_new"
        )
    return sweeps


def causal_tests(settings: LabSettings, workdir: Path) -> list[str]:
    """Runs the causal test on this part's datasets; returns a sentence for each that has to wait."""
    part, waits = parse_part(settings.part), []
    for dataset in tuple(settings.datasets)[part[0] :: part[1]]:
        folder = workdir / WHY / dataset.replace("/", "_")
        state = folder / "state.json"
        if state.exists() and read_json(state, dict).get("state") == "finished":
            continue
        adapters, missing = [], 0
        for method in settings.methods:
            if registry.find_kind(method) in (Kind.PROMPTS, Kind.WEIGHTS):
                for seed in settings.more_seeds:
                    name = f"{method}-{dataset.replace('/', '_')}-{max(settings.shots)}shots-seed{seed}.safetensors"
                    path = workdir / MOST_SHOTS / "adapters" / name
                    adapters += [str(path)] if path.exists() else []
                    missing += not path.exists()
        if missing or not adapters:
            waits.append(f"the causal test on {dataset} lacks {missing} adapters; give the command again with them.")
            continue
        study = convert(
            settings,
            ExplainSettings,
            adapters=",".join(adapters),
            sections="factorial,constants,verdict",
            image_limit=settings.causal_images,
            control_images=0,
            datasets=None,
            template=None,
        )
        explain.main(study, folder)
    return waits


@dataclasses.dataclass
class _Cost:
    """Of a sweep: runs, cells, and images that are decoded at most for training and for tests."""

    runs: int = 0
    cells: int = 0
    training: int = 0
    tests: int = 0


def describe_plan(settings: LabSettings) -> Iterator[str]:
    """The lines of the plan."""
    size = clipbias.load(settings.model).preprocessing.image_size
    sizes = {name: _sizes(settings, name) for name in settings.datasets}
    image, third = 3 * size**2, settings.compute.cache_gb * 1e9 / 3
    total = _Cost()
    for name, stage in stages(settings).items():
        cost = _Cost()
        for dataset, (classes, tests) in sizes.items():
            own = _cost(stage, dataset, classes, tests, fits=tests * image <= third)
            for field in dataclasses.fields(_Cost):
                setattr(cost, field.name, getattr(cost, field.name) + getattr(own, field.name))
        for field in dataclasses.fields(_Cost):
            setattr(total, field.name, getattr(total, field.name) + getattr(cost, field.name))
        yield f"{name}: {_words(cost)}"
    yield f"in all: {_words(total)}"
    largest, (_, most) = max(sizes.items(), key=lambda one: one[1][1])
    need = f"{largest}'s {most:,} test images take {most * image / 1e9:.1f} GB of a third of it"
    yield f"memory of the host: up to {settings.compute.cache_gb:g} GB for images (cache_gb); {need}"
    yield "memory of the device: --config.dry_run compiles every program and prints it"


def _sizes(settings: LabSettings, name: str) -> tuple[int, int]:
    """Classes and test images of a dataset, by the catalogue if it is there."""
    if name in catalog.ENTRIES:
        entry = catalog.ENTRIES[name]
        return entry.classes, entry.sizes["test"]
    dataset = common.load_dataset(settings, name)
    return len(dataset.class_names), len(dataset.split("test"))


def _cost(stage: Table1Settings, dataset: str, classes: int, tests: int, *, fits: bool) -> _Cost:
    """What a sweep has to do on one dataset; test images that fit are decoded once."""
    found, half = _Cost(), stage.protocol == "base_to_new"
    options = table1.given_options(stage)
    for name in stage.methods:
        draws = registry.make_method(name).uses_images
        for shots in (stage.shots or ()) if draws else (0,):
            method = registry.resolve_method(name, options.get(name, {}), dataset=dataset, shots=shots)
            seeds = len(stage.seeds) if draws else 1
            images = shots * (-(-classes // 2) if half else classes)
            decoded = images
            if (sampling := sampling_of(method)) is not None:
                decoded = images * max(1, sampling.passes)
            elif draws:
                recipe = method.recipe_for(stage.recipe, shots)
                decoded = recipe.total_steps(images) * min(recipe.batch_size, images)
            found.runs, found.cells = found.runs + seeds, found.cells + 1
            found.training += decoded * seeds
            found.tests += 0 if fits and found.tests else tests
    return found


def _words(cost: _Cost) -> str:
    images = f"decodes at most {cost.training:,} images for training and {cost.tests:,} for tests"
    return f"{cost.runs:,} runs in {cost.cells:,} cells (method, dataset, shots); {images}"


if __name__ == "__main__":
    common.run(main, _CONFIG)
