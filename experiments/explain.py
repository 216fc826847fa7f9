"""Why tuning works: relevancy, attention, the causal test and faithfulness of tuned adapters, as a report.

    python -m experiments.explain --config.adapters=workdir/ivlp,workdir/bias --workdir=workdir/why
    python -m experiments.explain --config.adapters='workdir/demo/adapters/*-16shots-*' --workdir=workdir/why

Continues where it stopped. Writes `results.npz`, `results.json` and `report/report.html`; for several datasets a folder
each and an `overview.html`. At the end it prints the sentence that the report begins with.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import clipbias
from clipbias import data, hosts, studies
from clipbias.analysis.run import named_sections
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.report import write_overview
from clipbias.report.study_page import method_sentences
from clipbias.settings import as_json
from clipbias.studies import FinishedStudy
from clipbias.training import placement
from clipbias.training.device import explain_exhaustion
from clipbias.training.progress import MetricWriter
from clipbias.training.workdir import open_workdir
from configs.explain import ExplainSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import AdapterFile, find_adapters, open_adapter, refuse_other_descriptions


def main(settings: ExplainSettings, workdir: Path) -> None:
    sections = None if settings.sections == "all" else split(settings.sections)
    named_sections(sections)  # before anything is loaded
    groups = adapters_by_dataset(settings, find_adapters(settings.adapters))
    has_overview = settings.datasets is not None or len(groups) > 1
    if has_overview:
        settings = dataclasses.replace(settings, datasets=tuple(groups))  # for whoever reads the work folder
    with open_workdir(workdir, as_json(settings)), contextlib.ExitStack() as opened:
        metrics: MetricWriter | None = None
        load = functools.cache(lambda name: common.load_dataset(settings, name))
        for name in groups:  # before the first study, so that a missing dataset costs no hours
            load(name).split(settings.split)
        folders = {name: workdir / name.replace("/", "_") if has_overview else workdir for name in groups}
        finished: dict[str, FinishedStudy] = {}
        for number, (name, folder) in enumerate(folders.items(), start=1):
            finished[name] = explain(settings, load(name), groups[name], folder, sections)
            results = finished[name].results
            accuracies = {f"accuracy/{model.key}": model.accuracy for model in results.models}
            about = {"dataset": results.dataset.name, "images": results.dataset.images}
            # Not before the first result: it replaces the metrics of an earlier study.
            metrics = metrics or opened.enter_context(MetricWriter(workdir))
            metrics.write(number, {**about, **accuracies, "seconds": results.seconds})
        hosts.leave()
        if not hosts.is_first():
            return
        for study in finished.values():
            common.tell(f"report: {study.page}")
        if has_overview:
            common.tell(f"overview: {write_overview(list(folders.values()), workdir)}")
        for study in finished.values():
            sentences = [method_sentences(study.results, method) for method in study.results.methods]
            common.tell(*(sentence for each in sentences for sentence in each))


def adapters_by_dataset(settings: ExplainSettings, adapters: Sequence[AdapterFile]) -> dict[str, list[AdapterFile]]:
    """Returns the datasets of the studies, each with the adapters that were trained on it.

    Raises `ClipbiasError` for an adapter without the name of its dataset, or a wanted dataset without adapters.
    """
    if settings.dataset is not None and settings.datasets is not None:
        raise ClipbiasError("give --config.dataset or --config.datasets, not both.")
    if settings.dataset is not None:
        return {settings.dataset: list(adapters)}
    if settings.datasets is None and not adapters:
        raise ClipbiasError("no dataset to explain; give --config.dataset=NAME.")
    groups: dict[str, list[AdapterFile]] = {name: [] for name in settings.datasets or ()}
    for adapter, source in adapters:
        name = str(adapter.notes.get("dataset") or "")
        if not name:
            raise ClipbiasError(f"{source} does not say on which dataset it was trained; give --config.dataset=NAME.")
        if settings.datasets is None or name in groups:
            groups.setdefault(name, []).append((adapter, source))
    if missing := [name for name, group in groups.items() if adapters and not group]:
        raise ClipbiasError(f"none of --config.adapters was trained on {missing[0]}; leave it out of the datasets.")
    return groups


def explain(
    settings: ExplainSettings,
    dataset: data.Dataset,
    adapters: Sequence[AdapterFile],
    folder: Path,
    sections: Sequence[str] | None,
) -> FinishedStudy:
    """Runs the study of a dataset in `folder`."""
    clip = clipbias.load(settings.model or next((adapter.base for adapter, _ in adapters), "demo"), device="host")
    dtype = settings.dtype or next((adapter.dtype for adapter, _ in adapters), "float32")
    tuned = [open_adapter(adapter, clip, settings, dtype=dtype) for adapter, _ in adapters]
    for model in tuned:
        refuse_other_descriptions(model, dataset)
    with explain_exhaustion("lower --config.batch_size."):
        return studies.explain(
            tuned,
            dataset,
            folder,
            split=settings.split,
            sections=sections,
            options=settings.study,
            clip=tuned[0].clip if tuned else clip,  # with the geometry and preprocessing of training
            dtype=dtype,
            sources=[source for _, source in adapters],
            predictions=prediction_folders(settings.predictions, adapters),
            config=as_json(settings),
            mesh=placement.make_mesh(run=settings.mesh.run, data=settings.mesh.data),
        )


def prediction_folders(workdirs: str | None, adapters: Sequence[AdapterFile]) -> list[Path]:
    """Returns the named folders of runs, and the folders of the adapters."""
    folders = [user_path(path) for path in split(workdirs)]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise ClipbiasError(f"there is no folder {missing[0]}; check --config.predictions.")
    # A sweep has its adapters one folder below its predictions.
    for _, source in adapters:
        parent = Path(source).parent
        folders += [parent, parent.parent] if parent.name == "adapters" else [parent]
    return folders


if __name__ == "__main__":
    common.run(main)
