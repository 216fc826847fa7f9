"""Studies of tuned models on a dataset, with a report: `clipbias explain` and `clipbias.explain`."""

import contextlib
import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.analysis.model import Model
from clipbias.analysis.results import StudyResults, VerdictLabels
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.checks import shown
from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split
from clipbias.data.held_out import unlabelled_images
from clipbias.data.sources import open_images
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.identity import identity
from clipbias.report.names import dataset_name, method_name
from clipbias.report.study_page import method_sentences, write_report
from clipbias.sentences import counted
from clipbias.training.predictions import KnownPredictions
from clipbias.training.progress import Progress, say
from clipbias.training.spec import seen_in_training
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Task
from clipbias.tuning.adapter import start_seed
from clipbias.tuning.prompts import Classes
from clipbias.tuning.tuned import Tuned


@dataclasses.dataclass(frozen=True)
class FinishedStudy:
    """Result of `clipbias.explain`."""

    results: StudyResults  # all numbers, which are in the folder too
    page: Path | None  # the report's file; `None` on all processes but the first

    @property
    def sentence(self) -> str:
        """Verdicts and conclusions in words, as at the top of the report."""
        methods = self.results.methods
        return " ".join(sentence for method in methods for sentence in method_sentences(self.results, method))

    @property
    def labels(self) -> dict[str, VerdictLabels]:
        """Verdicts on the tested methods, by label."""
        return {method.label: method.labels for method in self.results.methods if method.labels is not None}


def explain(
    models: TunedModel | Sequence[TunedModel],
    dataset: Dataset | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    split: str = "test",
    sections: Sequence[str] | None = None,
    options: StudyOptions | None = None,
    clip: Clip | None = None,
    dtype: str = "float32",
    sources: Sequence[str] | None = None,
    predictions: Sequence[str | os.PathLike] = (),
    config: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> FinishedStudy:
    """Studies why tuned models beat zero-shot on a dataset, and writes the report.

        study = clipbias.explain([model, other], pets, "why")
        print(study.sentence)

    An interrupted study continues from its folder.

    Args:
      models: one or several on the same CLIP; models that differ in their seed alone are judged together.
      dataset: from `clipbias.data.load`, or a name or path as for `fit`. Models of other classes are bound to its
        classes. Zero-shot has the texts of the models, where these agree, else those of the dataset.
      folder: for `results.npz`, `results.json` and `report/report.html`.
      split: images to explain: "train", "val" or "test".
      sections: names to compute (`clipbias.analysis.sections`); "replacement" and "rank" train. Default: all.
      options: of the study. Default: `StudyOptions()`.
      clip, dtype: frozen model and its compute type, for a study without tuned models.
      sources: paths of the adapters, `[len(models)]`, for the page.
      predictions: folders of runs with stored predictions, used where model and images are the same.
      config: JSON values to store with the results.
      mesh: devices. Default: the first device.
      progress: whether to show progress bars.

    Raises:
      ClipbiasError: the models have different CLIPs, or cannot be bound to these classes; a split or section does not
        exist, or no image could be read.
    """
    tuned = list(models) if isinstance(models, Sequence) else [models]
    for model in tuned:
        if not isinstance(model, TunedModel):
            raise ClipbiasError(f"a model is {shown(model)}; give what clipbias.fit or clipbias.load_adapter returned.")
    data = dataset if isinstance(dataset, Dataset) else open_images(dataset)
    if not isinstance(data, Dataset):
        raise ClipbiasError(f"the dataset is {shown(dataset)}; give what clipbias.data.load returned, or a name.")
    images = data.split(split)
    for model in tuned:
        if words := seen_in_training(model.notes, data, model.task.classes, split):
            warnings.warn(words, ClipbiasWarning, stacklevel=2)
    bound = bind_models(tuned, data, clip=clip, dtype=dtype, sources=sources)
    with _bars(progress) as advance:
        study = Study(
            bound,
            images,
            options or StudyOptions(),
            Path(folder),
            training=data.splits.get("train"),
            unlabelled=unlabelled_images(data, images),
            mesh=mesh,
            advance=advance,
            known=_known_predictions([Path(place) for place in predictions], images),
        )
        # Processes that explain different things would wait for each other forever, or mix their sums.
        hosts.assert_same("what is explained", study.identity)
        results = run_study(study, Path(folder), dataset=data.name, split=split, config=config, sections=sections)
        page = write_report(folder, Path(folder) / "report", advance) if hosts.is_first() else None
    return FinishedStudy(results, page)


def bind_models(
    tuned_models: Sequence[TunedModel],
    dataset: Dataset,
    *,
    clip: Clip | None = None,
    dtype: str = "float32",
    sources: Sequence[str] | None = None,
) -> list[Model]:
    """Binds models to a dataset's classes, behind zero-shot; arguments as for `explain`.

    A repeated method is named by its seed, a method that was trained on another dataset by that dataset. Raises
    `ClipbiasError` for no model, several frozen models, or learnables that belong to other classes.
    """
    if clip is None and not tuned_models:
        raise ClipbiasError("there is no model to explain; give tuned models, or clip=….")
    clip = tuned_models[0].clip if clip is None else clip
    # One frozen model for all: features of images and texts are computed once, and differences come from tuning alone.
    for model in tuned_models:
        if different := [part for part, value in model.clip.parts.items() if value != clip.parts[part]]:
            raise ClipbiasError(
                f"a model is of {model.clip.name!r} and not of {clip.name!r} (different {', '.join(different)}); study "
                "them apart."
            )
    # Zero-shot computes as the tuned models do: else a difference of dtypes would count as a gain.
    dtype = tuned_models[0].task.classifier.dtype if tuned_models else dtype
    for model in tuned_models:
        if model.task.classifier.dtype != dtype:
            raise ClipbiasError(
                f"models compute in {dtype} and in {model.task.classifier.dtype}; load their adapters with one dtype."
            )
    # Models of other classes are bound anew: predictions and zero-shot's classes must agree.
    own_models = [
        model if model.class_names == tuple(dataset.class_names) else model.with_classes(dataset)
        for model in tuned_models
    ]
    # Zero-shot reads the texts of the models where these agree: with other texts, two changes would be compared.
    texts = {model.task.classes.identity: model.task.classes for model in own_models}
    classes = texts.popitem()[1] if len(texts) == 1 else Classes.of(dataset)
    task = Task(clip, ZERO_SHOT, dataclasses.replace(classes, class_names=tuple(dataset.class_names)), dtype=dtype)
    bound = [Model(ZERO_SHOT, method_name(ZERO_SHOT), Tuned(task), clip.name)]
    labels = {each.key: each.label for each in bound}
    trainings: dict[str, list[str]] = {}  # trainings by name
    seen: Counter[tuple[object, ...]] = Counter()
    for model, own, source in zip(tuned_models, own_models, sources or [""] * len(tuned_models), strict=True):
        method = own.task.method_name
        name = method_name(method)
        if isinstance(measured := model.notes.get("equivalent_bias"), Mapping):  # nothing was tuned
            name = f"Equivalent bias of {method_name(str(measured.get('method')))}"
        seed = model.notes.get("seed")
        start = start_seed(model.notes)
        trained_on = str(model.notes.get("dataset") or "")
        if trained_on and trained_on != dataset.name:
            name += f" trained on {dataset_name(trained_on)}"
        shots = model.notes.get("shots")
        others = {each.notes.get("shots") for each in tuned_models if each.task.method_name == method}
        if isinstance(shots, int) and others != {shots}:
            name += f", {counted(shots, 'shot')}"
        # Models of the same name and training are seeds of one method, crossed in intervals. Another training, or the
        # same seed again, is no further seed: it gets a number.
        training = str(model.notes.get("training") or identity(own.task.method))
        number = seen[facts := (training, seed, start)]
        seen[facts] += 1
        training += f" ({number + 1})" if number else ""
        alike = trainings.setdefault(name, [])
        if training not in alike:
            alike.append(training)
        if place := alike.index(training):
            name += f" ({place + 1})"
        key, label = unique_key(method, name, seed, start, labels)
        labels[key] = label
        bound.append(
            Model(
                key.replace("/", "_"),
                label,
                own,
                source=source,
                seed=start,
                name=name,
                training=training,
                few_shot_split=None if seed is None else few_shot_split(model.notes),
            )
        )
    return bound


def few_shot_split(notes: Mapping[str, object]) -> str:
    """Returns the identity of an adapter's training images: dataset, content, shots and the split's seed."""
    # The content counts besides the name: a folder may hold other pictures today.
    return " ".join(str(notes.get(name, "")) for name in ("dataset", "data", "shots", "seed"))


def unique_key(method: str, name: str, seed: object, start: int, used: Mapping[str, str]) -> tuple[str, str]:
    """Returns a key and a label that no other model of the study has; `used` are the labels that are given, by key."""
    # Keys name files and arrays of the results, so they must differ. Labels are for people: a seed stands in them only
    # where it tells models apart.
    base = Path(method.partition(":")[0]).stem if method.endswith(".py") else method
    is_again = seed is not None and start != seed
    if base not in used and not is_again:
        return base, name
    key = f"{base}_seed{seed or 0}"
    words = f"seed {seed or 0}"
    if is_again:
        key += f"_start{start}"
        words += f", start {start}"
    number = 2
    while key in used:
        key = f"{base}_{number}"
        number += 1
    return key, f"{name} ({words})" if is_again or name in used.values() else name


def _known_predictions(folders: Sequence[Path], split: Split) -> Callable[[Model], np.ndarray | None]:
    """Returns a function that reads a model's predictions for the images from the folders of runs."""
    known = KnownPredictions(dict.fromkeys(folders))
    found: dict[str, list[int] | None] = {}  # by model key, since several sections need them

    def find(model: Model) -> np.ndarray | None:
        def read() -> list[int] | None:
            predicted = known.find(model.tuned, split)
            return None if predicted is None else predicted.tolist()

        if model.key not in found:
            # The first process reads: others may see no files, and who skips a computation leaves the rest waiting.
            found[model.key] = hosts.from_first(read)
            if found[model.key] is not None:
                say(f"{model.label}: predictions read from an evaluation")
        predicted = found[model.key]
        return None if predicted is None else np.array(predicted, np.int32)

    return find


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    bar, last = Progress(), ("", 0)

    def advance(title: str, done: int, total: int) -> None:
        nonlocal bar, last
        # A count that falls is a new pass of the same title.
        if title != last[0] or done < last[1]:
            bar.close()
            bar = Progress(total, done=done, title=title if total else "", shown=shown)
        if total:
            bar.advance_to(done)
        elif title:
            bar.at_work(title)
        last = (title, done)

    try:
        yield advance
    finally:
        bar.close()
