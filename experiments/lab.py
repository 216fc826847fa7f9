"""The paper's experiments on one machine: three sweeps, then the causal test of each dataset.

    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab
    python -m experiments.lab --config.data_dir=/data --workdir=/results/lab --config.part=2/4

The work folder has a folder of `table1` for fewer shots (`few_shot`), for the most shots with more seeds
(`most_shots`) and for `base_to_new`, and a study of `explain` for each dataset in `why`. The same command continues;
what is finished is not repeated. Independent jobs share the work with `--config.part`; the causal test of a dataset
begins when all of its adapters are there.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted
from clipbias.settings import as_json, convert
from clipbias.training.spec import Row, RunSpec, run_names
from clipbias.training.sweep import parse_part
from clipbias.training.workdir import SweepPaths, note_model, open_workdir
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
    swept = {name: _sweep(name, stage, workdir / name) for name, stage in stages(settings).items()}
    if settings.causal_images:
        specs, rows = swept[MOST_SHOTS]
        adapters = adapters_of(specs, rows, workdir / MOST_SHOTS)
        common.tell(*causal_tests(settings, adapters, workdir / WHY))
    failures = []
    for name, (_, rows) in swept.items():
        if errors := [row["error"] for row in rows if row["status"] != "ok"]:
            failures.append(f"{name}: {counted(len(errors), 'run')} failed; the first one: {errors[0]}")
    if failures:
        raise ClipbiasError(" ".join(failures))


def _sweep(name: str, stage: Table1Settings, workdir: Path) -> tuple[list[RunSpec], list[Row]]:
    """Runs a sweep without tables, which may not mix the policies of ImageNet and others."""
    with open_workdir(workdir, as_json(stage), part=parse_part(stage.part)):
        context, rates = table1.prepare(stage, table1.axes_of(stage), skip_missing=stage.on_missing == "skip")
        note_model(workdir, context.clip)
        specs, rows = table1.run(stage, context, rates, workdir)
    common.tell(f"{name}: {len(rows)} of {counted(len(specs), 'run')} done")
    return specs, rows


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


def adapters_of(specs: Sequence[RunSpec], rows: Sequence[Row], workdir: Path) -> list[tuple[str, Path | None]]:
    """Returns the datasets and adapters that a causal test can explain; `None` for an adapter that is not trained yet.

    A file counts by its row: one of the same name may be left from other settings.
    """
    paths = SweepPaths(workdir, run_names(specs))
    done = {row["key"] for row in rows if row["status"] == "ok"}
    kinds = {name: registry.find_kind(name) for name in dict.fromkeys(spec.method for spec in specs)}
    # A user's own method may have no kind: the test says what it changes.
    explained = [
        name
        for name, kind in kinds.items()
        if kind in (Kind.PROMPTS, Kind.WEIGHTS) or (kind is None and registry.is_user_method(name))
    ]
    return [
        (spec.dataset, paths.adapter(spec) if spec.key in done else None) for spec in specs if spec.method in explained
    ]


def causal_tests(settings: LabSettings, adapters: Sequence[tuple[str, Path | None]], workdir: Path) -> list[str]:
    """Runs the causal test on this part's datasets; returns sentences on those that this call leaves to another."""
    number, parts = parse_part(settings.part)
    others = [
        f"{dataset} by {1 + place % parts}/{parts}"
        for place, dataset in enumerate(settings.datasets)
        if place % parts != number
    ]
    sentences = [f"other parts make the causal test: {', '.join(others)}."] if others else []
    for dataset in settings.datasets[number::parts]:
        paths = [path for name, path in adapters if name == dataset]
        # Other parts train these adapters; a later call of the command begins the test.
        if not paths or None in paths:
            sentences.append(
                f"the causal test on {dataset} lacks {paths.count(None)} adapters; give the command again with them. "
                f"Until then {workdir} has no study of these settings."
            )
            continue
        study = convert(
            settings,
            ExplainSettings,
            adapters=",".join(map(str, paths)),
            own_methods=",".join(filter(registry.is_user_method, settings.methods)) or None,
            sections="causal",
            batch_size=None,  # not that of training, which has the same name
            image_limit=settings.causal_images,
            datasets=None,
            template=None,
        )
        # Also where it was finished: it may have been of other adapters, and what is stored for these takes no pass.
        explain.main(study, workdir / dataset.replace("/", "_"))
    return sentences


if __name__ == "__main__":
    common.run(main)
