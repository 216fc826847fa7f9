"""The paper's experiments on one machine: three sweeps, then the causal test of each dataset.

    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab
    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab --config.part=2/4

The work folder has a folder of `table1` for fewer shots (`few_shot`), for the most shots with more seeds
(`most_shots`) and for `base_to_new`, and a study of `explain` for each dataset in `why`. The same command continues;
what is finished is not repeated. Independent jobs share the work with `--config.part`; the causal test of a dataset
begins when all of its adapters are there.
"""

import functools
from pathlib import Path

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.io import read_json
from clipbias.sentences import counted
from clipbias.settings import as_json, convert
from clipbias.training.sweep import parse_part
from clipbias.training.workdir import note_model, open_workdir
from clipbias.tuning import Kind, registry
from configs.explain import ExplainSettings
from configs.lab import LabSettings
from configs.table1 import Table1Settings
from experiments import common, explain, table1

MOST_SHOTS = "most_shots"
WHY = "why"


def main(settings: LabSettings, workdir: Path) -> None:
    if settings.dry_run:
        table1.dry_run(
            settings.topology, *(functools.partial(table1.plan, stage) for stage in stages(settings).values())
        )
        return
    if hosts.multi_process():
        raise ClipbiasError("a lab runs in one process on all devices of a machine; share it with --config.part=1/4.")
    failures = [_sweep(name, stage, workdir / name) for name, stage in stages(settings).items()]
    if settings.causal_images:
        common.tell(*causal_tests(settings, workdir))
    if any(failures):
        raise ClipbiasError(" ".join(failure for failure in failures if failure))


def _sweep(name: str, stage: Table1Settings, workdir: Path) -> str:
    """Runs a sweep without tables, which may not mix the policies of ImageNet and others; returns what failed."""
    with open_workdir(workdir, as_json(stage), part=parse_part(stage.part)):
        context, rates = table1.prepare(stage, table1.axes_of(stage), skip_missing=stage.on_missing == "skip")
        note_model(workdir, context.clip)
        specs, rows = table1.run(stage, context, rates, workdir)
    common.tell(f"{name}: {len(rows)} of {counted(len(specs), 'run')} done")
    failed = [row["error"] for row in rows if row["status"] != "ok"]
    return f"{name}: {counted(len(failed), 'run')} failed; the first one: {failed[0]}" if failed else ""


def stages(settings: LabSettings) -> dict[str, Table1Settings]:
    """Makes the settings of `table1` for each sweep, by its folder."""
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
        # Other parts train these adapters; a later call of the command begins the test.
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
            sections="causal",
            batch_size=None,  # not that of training, which has the same name
            image_limit=settings.causal_images,
            datasets=None,
            template=None,
        )
        explain.main(study, folder)
    return waits


def adapter_files(settings: LabSettings, dataset: str, workdir: Path) -> list[Path]:
    """Returns the paths of the adapters that the causal test of a dataset needs."""
    folder = workdir / MOST_SHOTS / "adapters"
    name = f"{dataset.replace('/', '_')}-{max(settings.shots)}shots"
    methods = [name for name in settings.methods if registry.find_kind(name) in (Kind.PROMPTS, Kind.WEIGHTS)]
    return [folder / f"{method}-{name}-seed{seed}.safetensors" for method in methods for seed in settings.more_seeds]


if __name__ == "__main__":
    common.run(main)
