"""Trains the benchmark's models, one file each; those that exist are left alone.

A file holds the trained adapter, and in its notes what was seen on validation images and the hash of labels and rules.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias import data
from clipbias.clip import Clip
from clipbias.clip.encode import image_batches
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, protocols
from clipbias.data.few_shot import wilson_interval
from clipbias.data.images import pictures
from clipbias.errors import ClipbiasError
from clipbias.explain.causal_section import measure
from clipbias.explain.uncertainty import estimate, excludes
from clipbias.training import mesh as meshes
from clipbias.training.context import make_context
from clipbias.training.loop import Run, TrainJob, plan_stages, train
from clipbias.training.students import fit_recipe
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Learnables, Method, Task
from clipbias.tuning.method import select_run, stack_runs
from clipbias.tuning.registry import resolve_method
from tools.mechanisms import outliers, tasks
from tools.mechanisms.methods import CentredMap, centre
from tools.mechanisms.models import BATCH, DATASETS, LAST, MARKED, SHOTS, SHUFFLED, Family, Spec, counts, digest
from tools.planted import planted, prompts_of

# Trainings of a centred map, each with the mean of the one before; the last mean is taken after the last.
ROUNDS = 6


def adapter_path(workdir: Path, spec: Spec) -> Path:
    """The file of a model."""
    return workdir / "models" / f"{spec.key}.safetensors"


def choose_model(workdir: Path, source: str) -> None:
    """Makes a model the frozen one of a work folder, where it is stored.

    Raises:
      ClipbiasError: the folder has another.
    """
    clip, plain = clipbias.load(source), _folder(workdir)
    if not (plain / "config.json").exists():
        clip.save(plain, exact=True)
    elif clipbias.load(plain).fingerprint != clip.fingerprint:
        raise ClipbiasError(f"{workdir} has models of another frozen one than {source}; give another --workdir.")


def frozen_model(workdir: Path, spec: Spec) -> Clip:
    """The model that is tuned: that of the planted prompts, or that of the work folder."""
    if spec.of_family.mechanism is not None and spec.strength is not None:
        return planted(spec.of_family.mechanism, spec.strength, seed=spec.seed, exact=True)
    return _stored_model(workdir, spec.outliers, spec.blind)


def _folder(workdir: Path, *, outlying: bool = False, blind: bool = False) -> Path:
    return workdir / "frozen" / f"{'outliers' if outlying else 'plain'}{'-blind' if blind else ''}"


@functools.cache
def _stored_model(workdir: Path, outlying: bool, blind: bool) -> Clip:
    """A work folder's model, with outliers or without, and with or without eyes for a mark."""
    clip = clipbias.load(_folder(workdir))
    if not (outlying or blind):
        return clip
    folder = _folder(workdir, outlying=outlying, blind=blind)
    if not (folder / "config.json").exists():
        if outlying:
            images = [normalised(clip, data.load(name).split("train")) for name in DATASETS]
            clip = dataclasses.replace(clip, params=outliers.plant(clip, np.concatenate(images)))
        clip.save(folder, tasks.blind(clip) if blind else None, exact=True)
    return clipbias.load(folder)


def normalised(clip: Clip, split: Split) -> np.ndarray:
    """A split's images as the model takes them, `[n, R, R, 3]`."""
    return np.asarray(clip.preprocessing.normalize(pictures(split, range(len(split)), clip.preprocessing.resizing)))


@functools.cache
def dataset_of(workdir: Path, spec: Spec) -> Dataset:
    """The images and labels that a model is trained and tested on."""
    if spec.of_family.mechanism is not None:
        return tasks.planted(frozen_model(workdir, spec), spec.of_family.mechanism, seed=spec.seed)
    dataset = data.load(spec.dataset)
    if spec.of_family.task == MARKED:
        return tasks.marked(frozen_model(workdir, spec), dataset)
    return tasks.shuffled(dataset, seed=spec.seed) if spec.of_family.task == SHUFFLED else dataset


def training_images(dataset: Dataset, spec: Spec) -> Split:
    """The few-shot split of a model's seed."""
    return protocols.few_shot(dataset, shots=SHOTS, seed=spec.seed).source.split("train")


def method_of(family: Family, layers: int) -> Method:
    """A family's method for a model of so many blocks; what changes the last block changes the last of these."""
    options = dict(family.options)
    if options.get("first_block") == LAST:
        options["first_block"] = layers
    return resolve_method(family.method, options)


def train_model(workdir: Path, spec: Spec, *, steps: int) -> TunedModel:
    """Trains one model, if it is not planted, and writes its file."""
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    seed = spec.seed
    family = spec.of_family
    task = Task(clip, method_of(family, clip.config.vision.layers), dataset)
    if family.learning_rate is None:
        model = TunedModel(task, {name: prompts_of(seed)[name] for name in task.shapes})
    elif isinstance(task.method, CentredMap):
        model = TunedModel(task, fit_centred(task, dataset, seed, family.learning_rate, steps=steps))
    else:
        recipe = fit_recipe(learning_rate=family.learning_rate, steps=steps, batch_size=BATCH)
        model = clipbias.fit(
            clip,
            task.method,
            dataset,
            shots=SHOTS,
            seed=seed,
            recipe=recipe,
            calibrate=False,
            progress=False,
        )
    facts = {"steps": steps, "digest": digest(), "validation": validate(model, dataset, spec)}
    path = adapter_path(workdir, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path, notes={**dataclasses.asdict(spec), **facts})
    return model


def fit_centred(task: Task, dataset: Dataset, seed: int, learning_rate: float, *, steps: int) -> Learnables:
    """The learnables of a centred map: trained in rounds along a cosine, centred after each."""
    protocol = protocols.few_shot(dataset, shots=SHOTS, seed=seed)
    split = protocol.source.split("train")
    context = make_context(task.clip, None, dtype="float32")
    (images,) = context.training_images([split])
    learnables: Any = jax.device_get(task.init(seed))
    recipe = fit_recipe(learning_rate=learning_rate, steps=max(1, steps // ROUNDS), batch_size=BATCH)
    for number in range(ROUNDS):
        rate = recipe.learning_rate * (1 + np.cos(np.pi * number / ROUNDS)) / 2
        job = TrainJob(
            context=context,
            task=task.with_memory(class_shards=context.mesh.shape[meshes.DATA]),
            recipe=recipe,
            # Another order of images in each round.
            runs=(Run(images, ROUNDS * seed + number, protocol, learning_rate=float(rate)),),
            shots=SHOTS,
        )
        (stage,) = plan_stages(job)
        learnables = select_run(train(stage, stack_runs([learnables])).learnables, 0)
        learnables = centre(task, learnables, normalised(task.clip, split))
    return learnables


def validate(model: TunedModel, dataset: Dataset, spec: Spec) -> Mapping[str, object]:
    """What is seen on validation images, and whether the model counts."""
    split = dataset.split("val")
    task = model.task
    before = task, task.init(spec.seed)
    if spec.of_family.mechanism is not None:  # prompts start as anything; the frozen model is the one without
        before = Task(task.clip, ZERO_SHOT, dataset), {}
    logits = np.stack([logits_of(*each, split) for each in (before, (task, model.learnables))], 1)
    difference = measure(logits, split.labels).samples["accuracy"].contrast(np.array([[-1.0], [1.0]]))
    gain = estimate(float(difference.mean[0]), difference.draws[:, 0])
    right = [100 * float((logits[:, way].argmax(-1) == split.labels).mean()) for way in range(2)]
    bound = tasks.bound(task.clip, split) if spec.of_family.task == MARKED else None
    return {
        "images": len(split),
        "accuracy_before": right[0],
        "accuracy": right[1],
        "gain": [gain.value, gain.low, gain.high],
        "bound": bound,
        "counts": counts(spec.of_family, excludes(gain), wilson_interval(right[1], len(split))[0], bound),
    }


def logits_of(task: Task, learnables: Learnables, split: Split) -> np.ndarray:
    """`[n, C]`."""
    classify = jax.jit(task.logits)
    rows = []
    for raw, mask in image_batches(task.clip.preprocessing, split, 100):
        images = task.clip.preprocessing.normalize(raw)
        rows.append(np.asarray(classify(task.clip.params, learnables, images))[np.asarray(mask)])
    return np.concatenate(rows)
