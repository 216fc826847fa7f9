"""Why tuning works: relevancy, attention, the causal test and faithfulness of tuned adapters, as a report.

    python -m experiments.explain --config.adapters=workdir/ivlp,workdir/bias --workdir=workdir/why
    python -m experiments.explain --config.adapters='workdir/demo/adapters/*-16shots-*' --workdir=workdir/why

Continues where it stopped. Writes `results.npz`, `results.json` and `report/report.html`; for several datasets a folder
each and an `overview.html`. At the end it prints the sentence that the report begins with.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import clipbias
from clipbias import data, hosts
from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data.held_out import unlabelled_images
from clipbias.errors import ClipbiasError
from clipbias.explain.model import Model
from clipbias.explain.results import SECTIONS, StudyResults
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.io import user_path
from clipbias.report import write_overview, write_report
from clipbias.report.names import method_name
from clipbias.report.published import dataset_name
from clipbias.report.study_page import method_sentences
from clipbias.settings import as_json
from clipbias.training import mesh as meshes
from clipbias.training.device import explain_exhaustion
from clipbias.training.evaluate import KnownPredictions
from clipbias.training.progress import MetricWriter, Progress, say
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import start_seed
from configs.explain import ExplainSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import AdapterFile, by_dataset, find_adapters

_CONFIG = "configs/explain.py"


def main(settings: ExplainSettings, workdir: Path) -> None:
    sections = named_sections(settings.sections)
    groups = adapters_by_dataset(settings, find_adapters(settings.adapters))
    has_overview = settings.datasets is not None or len(groups) > 1
    if has_overview:
        settings = dataclasses.replace(settings, datasets=tuple(groups))  # for whoever reads the work folder
    with open_workdir(workdir, as_json(settings)), contextlib.ExitStack() as opened:
        metrics: MetricWriter | None = None
        load = functools.cache(lambda name: common.load_dataset(settings, name))
        for name in groups:  # all of them before the first study
            load(name).split(settings.split)
        folders = {name: workdir / name.replace("/", "_") if has_overview else workdir for name in groups}
        results = {}
        for number, (name, folder) in enumerate(folders.items(), start=1):
            study = explain(settings, load(name), groups[name], folder, sections, name=name)
            accuracies = {f"accuracy/{model.key}": model.accuracy for model in study.models}
            about = {"dataset": study.dataset.name, "images": study.dataset.images}
            # Not before: it replaces what an earlier study left.
            metrics = metrics or opened.enter_context(MetricWriter(workdir))
            metrics.write(number, {**about, **accuracies, "seconds": study.seconds})
            results[name] = study
        hosts.leave()
        if not hosts.is_first():
            return
        for folder in folders.values():
            common.tell(f"report: {write_report(folder, folder / 'report')}")
        if has_overview:
            common.tell(f"overview: {write_overview(list(folders.values()), workdir)}")
        for study in results.values():
            common.tell(*(sentence for method in study.methods for sentence in method_sentences(study, method)))


def named_sections(text: str) -> list[str]:
    """The sections that a setting names."""
    sections = list(SECTIONS) if text == "all" else split(text)
    if unknown := [section for section in sections if section not in SECTIONS]:
        raise ClipbiasError(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}, or 'all'.")
    return sections


def adapters_by_dataset(settings: ExplainSettings, adapters: Sequence[AdapterFile]) -> dict[str, list[AdapterFile]]:
    """The datasets to explain on, each with its adapters."""
    if settings.dataset is not None and settings.datasets is not None:
        raise ClipbiasError("give --config.dataset or --config.datasets, not both.")
    if settings.dataset is not None:
        return {settings.dataset: list(adapters)}
    if settings.datasets is None and not adapters:
        raise ClipbiasError("no dataset to explain; give --config.dataset=NAME.")
    return by_dataset(adapters, settings.datasets)


def explain(
    settings: ExplainSettings,
    dataset: data.Dataset,
    adapters: Sequence[AdapterFile],
    folder: Path,
    sections: Sequence[str],
    name: str,
) -> StudyResults:
    """One dataset's study, written to `folder`."""
    clip = clipbias.load(settings.model or next((adapter.base for adapter, _ in adapters), "demo"))
    mesh = meshes.make_mesh(run=settings.mesh.run, data=settings.mesh.data)
    images = dataset.split(settings.split)
    with explain_exhaustion("lower --config.batch_size."), advance_bars() as advance:
        study = Study(
            models(clip, dataset, adapters, settings.dtype, own_methods=split(settings.own_methods), on=name),
            images,
            settings.study,
            folder,
            training=dataset.splits.get("train"),
            unlabelled=unlabelled_images(dataset, images) if "replacement" in sections else None,
            mesh=mesh,
            advance=advance,
            known=known_predictions(settings.predictions, adapters, images),
        )
        hosts.assert_same("what is explained", study.fingerprint)
        return run_study(study, folder, dataset=name, split=settings.split, config=as_json(settings), sections=sections)


def known_predictions(
    workdirs: str | None, adapters: Sequence[AdapterFile], images: data.Split
) -> Callable[[Model], np.ndarray | None]:
    """Predictions for the images by the runs in these folders, and by those that the adapters come from."""
    folders = [user_path(path) for path in split(workdirs)]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise ClipbiasError(f"there is no folder {missing[0]}; check --config.predictions.")
    for _, source in adapters:
        parent = Path(source).parent
        folders += [parent, parent.parent] if parent.name == "adapters" else [parent]
    known = KnownPredictions(dict.fromkeys(folders))

    def find(model: Model) -> np.ndarray | None:
        predicted = known.find(model.task, model.learnables, model.method, images)
        if predicted is not None:
            say(f"{model.label}: predictions read from an evaluation")
        return predicted

    # All processes do the same, whatever files each of them sees.
    return (lambda model: None) if hosts.multi_process() else find


@contextlib.contextmanager
def advance_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Shows every step of a study: a bar for each title, one after another."""
    bars: dict[str, Progress] = {}

    def advance(title: str, done: int, total: int) -> None:
        if title not in bars:
            for bar in bars.values():
                bar.close()
            bars[title] = Progress(total, done=done - 1, unit="batch", title=title)
        bars[title].advance()

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.close()


def models(
    clip: Clip,
    dataset: data.Dataset,
    adapters: Sequence[AdapterFile],
    dtype: str,
    *,
    own_methods: Sequence[str] = (),
    on: str = "",
) -> list[Model]:
    """Zero-shot with the dataset's own template, then the adapters; a method that comes again is named by its seed.

    A method that was trained on another dataset than `on` is named by that too.
    """
    task = Task(clip, ZERO_SHOT, dataset, dtype=dtype)
    trainings = [(adapter.notes.get("dataset"), adapter.notes.get("data")) for adapter, _ in adapters]
    shares_name = len(set(trainings)) > len({name for name, _ in trainings})  # two folders, both called "folder"
    bound = [Model(ZERO_SHOT, method_name(ZERO_SHOT), ZERO_SHOT, task, {}, clip.name)]
    for adapter, source in adapters:
        name = method_name(adapter.method)
        seed = adapter.notes.get("seed")
        start = start_seed(adapter.notes)
        trained_on = adapter.notes.get("dataset") or None
        if on and trained_on and trained_on != on:
            name += f" trained on {dataset_name(trained_on)}"
        if trained_on and shares_name:
            trained_on += f" {adapter.notes.get('data')}"
        key, label = unique_key(adapter.method, name, seed, start, {model.key for model in bound})
        task, learnables = adapter.bind(clip, dataset, own_methods=own_methods, dtype=dtype)
        bound.append(
            Model(
                key.replace("/", "_"),
                label,
                adapter.method,
                task,
                learnables,
                source=source,
                seed=start,
                name=name,
                trained_on=trained_on,
                few_shot_split=None if seed is None else few_shot_split(adapter.notes),
            )
        )
    return bound


def few_shot_split(notes: Mapping[str, object]) -> str:
    """Names the images that an adapter was trained on: dataset, content, shots and the split's seed."""
    return " ".join(str(notes.get(name, "")) for name in ("dataset", "data", "shots", "seed"))


def unique_key(method: str, name: str, seed: int | None, start: int, taken: set[str]) -> tuple[str, str]:
    """A key that no other model of the study has, and the label that goes with it."""
    base = Path(method.partition(":")[0]).stem if method.endswith(".py") else method
    is_again = seed is not None and start != seed
    if base not in taken and not is_again:
        return base, name
    key = f"{base}_seed{seed or 0}"
    words = f"seed {seed or 0}"
    if is_again:
        key += f"_start{start}"
        words += f", start {start}"
    if key not in taken:
        return key, f"{name} ({words})"
    number = 2
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}", f"{name} ({number})"


if __name__ == "__main__":
    common.run(main, _CONFIG)
