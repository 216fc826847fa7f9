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
from clipbias.sentences import counted
from clipbias.settings import as_json, convert
from clipbias.training.sweep import parse_part
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning import Kind, registry
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import Method
from clipbias.tuning.recipe import Recipe
from configs.explain import ExplainSettings
from configs.lab import LabSettings
from configs.table1 import Table1Settings
from experiments import common, explain, table1

_CONFIG = "configs/lab.py"
MOST_SHOTS = "most_shots"
WHY = "why"


def main(settings: LabSettings, workdir: Path) -> None:
    if settings.dry_run:
        table1.dry_run(*stages(settings).values())
        common.tell(*describe_plan(settings))
        return
    if hosts.multi_process():
        raise ClipbiasError("a lab runs in one process on all devices of a machine; share it with --config.part=1/4.")
    common.tell(*describe_plan(settings))
    failures = [_sweep(name, stage, workdir / name) for name, stage in stages(settings).items()]
    if settings.causal_images:
        common.tell(*causal_tests(settings, workdir))
    if any(failures):
        raise ClipbiasError(" ".join(failure for failure in failures if failure))


def _sweep(name: str, stage: Table1Settings, workdir: Path) -> str:
    """Runs a sweep without tables, which may not mix the policies of ImageNet and others; returns what failed."""
    with open_workdir(workdir, as_json(stage), part=parse_part(stage.part)):
        inputs = table1.prepare(stage)
        note_model(workdir, inputs.context.clip)
        specs, rows = table1.run(inputs, workdir)
    common.tell(f"{name}: {len(rows)} of {counted(len(specs), 'run')} done")
    failed = [row["error"] for row in rows if row["status"] != "ok"]
    return f"{name}: {counted(len(failed), 'run')} failed; the first one: {failed[0]}" if failed else ""


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
    number, parts = parse_part(settings.part)
    waits = []
    for dataset in settings.datasets[number::parts]:
        folder = workdir / WHY / dataset.replace("/", "_")
        state = folder / "state.json"
        if state.exists() and read_json(state, dict).get("state") == "finished":
            continue
        adapters = adapter_files(settings, dataset, workdir)
        missing = [path for path in adapters if not path.exists()]
        if missing or not adapters:
            waits.append(
                f"the causal test on {dataset} lacks {len(missing)} adapters; give the command again with them."
            )
            continue
        study = convert(
            settings,
            ExplainSettings,
            adapters=",".join(map(str, adapters)),
            sections="factorial,constants,verdict",
            batch_size=None,  # that of training is another one
            image_limit=settings.causal_images,
            control_images=0,
            datasets=None,
            template=None,
        )
        explain.main(study, folder)
    return waits


def adapter_files(settings: LabSettings, dataset: str, workdir: Path) -> list[Path]:
    """Where the adapters that the causal test of a dataset needs lie."""
    folder = workdir / MOST_SHOTS / "adapters"
    name = f"{dataset.replace('/', '_')}-{max(settings.shots)}shots"
    methods = [name for name in settings.methods if registry.find_kind(name) in (Kind.PROMPTS, Kind.WEIGHTS)]
    return [folder / f"{method}-{name}-seed{seed}.safetensors" for method in methods for seed in settings.more_seeds]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a sweep: runs, cells, and images that are decoded at most for training and for tests."""

    runs: int = 0
    cells: int = 0
    training: int = 0
    tests: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.runs + other.runs,
            self.cells + other.cells,
            self.training + other.training,
            self.tests + other.tests,
        )

    def __str__(self) -> str:
        images = f"decodes at most {self.training:,} images for training and {self.tests:,} for tests"
        return f"{counted(self.runs, 'run')} in {counted(self.cells, 'cell')} (method, dataset, shots); {images}"


@dataclasses.dataclass(frozen=True)
class DatasetSize:
    """How large a dataset is."""

    classes: int
    tests: int


def describe_plan(settings: LabSettings) -> Iterator[str]:
    """The lines of the plan."""
    size = clipbias.load(settings.model).preprocessing.image_size
    sizes = {name: _size(settings, name) for name in settings.datasets}
    image_bytes = 3 * size**2
    memory = settings.compute.cache_gb * 1e9 / 3
    total = Cost()
    for name, stage in stages(settings).items():
        costs = [_cost(stage, dataset, sizes[dataset], memory // image_bytes) for dataset in sizes]
        cost = sum(costs, Cost())
        total += cost
        yield f"{name}: {cost}"
    yield f"in all: {total}"
    largest = max(sizes, key=lambda name: sizes[name].tests)
    tests = sizes[largest].tests
    need = f"{largest}'s {tests:,} test images take {tests * image_bytes / 1e9:.1f} GB of a third of it"
    yield f"memory of the host: up to {settings.compute.cache_gb:g} GB for images (cache_gb); {need}"
    yield "memory of the device: --config.dry_run compiles every program and prints it"


def _size(settings: LabSettings, name: str) -> DatasetSize:
    """Classes and test images of a dataset, by the catalogue if it is there."""
    if name in catalog.ENTRIES:
        entry = catalog.ENTRIES[name]
        return DatasetSize(entry.classes, entry.sizes["test"])
    dataset = common.load_dataset(settings, name)
    return DatasetSize(len(dataset.class_names), len(dataset.split("test")))


def _cost(stage: Table1Settings, dataset: str, size: DatasetSize, cached_images: float) -> Cost:
    """What a sweep has to do on one dataset; test images that fit the memory are decoded once."""
    classes = -(-size.classes // 2) if stage.protocol == "base_to_new" else size.classes
    options = table1.given_options(stage)
    cost = Cost()
    for name in stage.methods:
        uses_images = registry.make_method(name).uses_images
        seeds = len(stage.seeds) if uses_images else 1
        for shots in (stage.shots or ()) if uses_images else (None,):
            method = registry.resolve_method(name, options.get(name, {}), dataset=dataset, shots=shots)
            is_cached = size.tests <= cached_images and cost.tests > 0
            cost += Cost(
                runs=seeds,
                cells=1,
                training=seeds * _decoded_images(method, stage.recipe, shots, (shots or 0) * classes),
                tests=0 if is_cached else size.tests,
            )
    return cost


def _decoded_images(method: Method, common_recipe: Recipe, shots: int | None, images: int) -> int:
    """How many images a run decodes to train on so many."""
    if (sampling := sampling_of(method)) is not None:
        return images * max(1, sampling.passes)
    if not method.uses_images:
        return images
    recipe = method.recipe_for(common_recipe, shots)
    return recipe.total_steps(images) * min(recipe.batch_size, images)


if __name__ == "__main__":
    common.run(main, _CONFIG)
