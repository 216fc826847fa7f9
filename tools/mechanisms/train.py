"""Makes the benchmark's models, one file each: frozen models, tasks, trainings.

A file holds the trained adapter; its notes hold the outcome on validation images and the hash of labels and rules.

The *marked* task has every picture twice: without a mark in the first of two classes, with a mark in the second. The
mark is a pixel that the frozen model does not see: its weights in the patch embedding are zero. So a picture and its
marked copy have the same tokens. With any constants, in any layers, both get the same answer, which is right for
exactly one of them.

*Outliers* are tokens that become massive, as in large CLIPs (arXiv 2309.16588). One hidden unit of the first block's
MLP, the one that adds least, is replaced. Its inputs are from a ridge regression that separates the patches at
`outlier_places` from all other tokens: the unit is on at these patches alone. Its output is a large vector along the
direction of mean zero that keys and values of later blocks read least. LayerNorm leaves nothing else of an outlier, and
zero-shot accuracy stays (of 1,120 test images 490 are right with outliers and 489 without on clothes, and 757 and 761
on digits).
"""

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import clipbias
from clipbias import data
from clipbias.analysis.causal_section import outcomes, sample
from clipbias.clip import Clip
from clipbias.clip.block import Record, run_block
from clipbias.clip.encode import image_batches
from clipbias.clip.layers import ATTENDED, HIDDEN, activate, layer_norm
from clipbias.clip.params import Params
from clipbias.clip.vision import embed_image
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, protocols
from clipbias.data.images import pictures
from clipbias.errors import ClipbiasError
from clipbias.intervals import estimate, excludes, wilson_interval
from clipbias.training import placement
from clipbias.training.context import make_context
from clipbias.training.loop import Run, TrainJob, plan_stages, train
from clipbias.training.students import fit_recipe
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Learnables, Method, Task
from clipbias.tuning.method import select_run, stack_runs
from clipbias.tuning.registry import resolve_method
from tools.mechanisms import planted
from tools.mechanisms.labels import (
    BATCH,
    DATASETS,
    LAST,
    MARKED,
    PLANTED,
    SHOTS,
    SHUFFLED,
    Family,
    Spec,
    counts,
    digest,
)
from tools.mechanisms.methods import CentredMap, centre

# Trainings of a centred map, each with the mean after the one before.
ROUNDS = 6
# Images of a planted CLIP by split; training images have as many opposites.
PLANTED_IMAGES = MappingProxyType({"train": SHOTS, "val": 560, "test": 1120})
# Two classes by dataset that zero-shot CLIP separates.
PAIRS = MappingProxyType({"demo/fashion": (1, 7), "demo/digits": (3, 6)})
GREY = 123  # about 0 when it is normalised
WHITE = 255
OUTLIER_SIZE = 100.0  # the median norm of an outlier over that of a token
STEEP = 60.0  # the unit's input between off and on
RIDGE = 1e-4


def adapter_path(workdir: Path, spec: Spec) -> Path:
    """Returns the path of a model's file."""
    return workdir / "models" / f"{spec.key}.safetensors"


def choose_model(workdir: Path, source: str) -> None:
    """Stores the frozen model of a work folder.

    Raises:
      ClipbiasError: the folder has another.
    """
    clip, plain = clipbias.load(source), _folder(workdir)
    if not (plain / "config.json").exists():
        clip.save(plain, exact=True)
    elif clipbias.load(plain).fingerprint != clip.fingerprint:
        raise ClipbiasError(f"{workdir} has models of another frozen one than {source}; give another --workdir.")


def frozen_model(workdir: Path, spec: Spec) -> Clip:
    """Returns the model that is tuned: with a planted mechanism, or the work folder's."""
    if spec.of_family.mechanism is not None and spec.strength is not None:
        return planted.planted(spec.of_family.mechanism, spec.strength, seed=spec.seed)
    return _stored_model(workdir, spec.outliers, spec.blind)


def _folder(workdir: Path, *, outlying: bool = False, blind: bool = False) -> Path:
    return workdir / "frozen" / f"{'outliers' if outlying else 'plain'}{'-blind' if blind else ''}"


@functools.cache
def _stored_model(workdir: Path, outlying: bool, blind: bool) -> Clip:
    """Returns a work folder's model, with or without outliers, and with or without weights for the mark."""
    clip = clipbias.load(_folder(workdir))
    if not (outlying or blind):
        return clip
    folder = _folder(workdir, outlying=outlying, blind=blind)
    if not (folder / "config.json").exists():
        if outlying:
            images = [normalised(clip, data.load(name).split("train")) for name in DATASETS]
            clip = dataclasses.replace(clip, params=plant_outliers(clip, np.concatenate(images)))
        clip.save(folder, blinded(clip) if blind else None, exact=True)
    return clipbias.load(folder)


def outlier_places(clip: Clip) -> np.ndarray:
    """Returns the tokens that become massive: the patches in the two lower corners, which show background."""
    vision = clip.config.vision
    return np.array([vision.patches - vision.grid, vision.patches - 1]) + vision.first_patch


def plant_outliers(clip: Clip, images: np.ndarray) -> Params:
    """Returns frozen weights with outliers; the unit is fitted to normalised images `[B, R, R, 3]`."""
    params: Params = jax.tree.map(np.array, clip.params)
    tower = params["vision"]["layers"]
    config = clip.config.vision
    inputs = embed_image(clip.params, clip.config, jnp.asarray(images))
    layer = jax.tree.map(lambda leaf: leaf[0], inputs.layers)
    seen = Record()
    hooks = dataclasses.replace(inputs.hooks(inputs.attend_fused), tap=seen)
    norm = np.linalg.norm(run_block(inputs.tokens, layer, config, hooks), axis=-1).mean()
    normed = np.asarray(layer_norm(seen[ATTENDED], layer.weights["norm2"], config.layer_norm_epsilon), np.float64)
    active = np.abs(activate(seen[HIDDEN], config.activation)).mean((0, 1))
    adds = active * np.linalg.norm(tower["fc2"]["kernel"][0], axis=-1)
    unit = int(adds.argmin())
    weights, offset = _separate(normed, outlier_places(clip))
    tower["fc1"]["kernel"][0, :, unit] = STEEP * weights
    tower["fc1"]["bias"][0, unit] = STEEP * offset
    on = np.median(STEEP * (normed[:, outlier_places(clip)] @ weights + offset))
    tower["fc2"]["kernel"][0, unit] = OUTLIER_SIZE * norm / on * least_read(params)
    return params


def _separate(tokens: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, float]:
    """Fits weights and offset of a score above 0 at tokens `[B, N, D]` of these places, and below 0 at all others."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    target = np.tile(np.isin(np.arange(tokens.shape[1]), where), len(tokens)).astype(float)
    balance = np.where(target > 0, 1 / target.mean(), 1 / (1 - target.mean()))
    centre = np.average(rows, axis=0, weights=balance)
    x = rows - centre
    gram = (x * balance[:, None]).T @ x / len(x) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, (x * balance[:, None]).T @ (target - 0.5) / len(x))
    score = rows @ weights
    on = score[target > 0].min()
    off = score[target == 0].max()
    if on <= off:
        raise ValueError(
            f"no score separates the patches at {where.tolist()} from the others: {on:.3f} is below {off:.3f}"
        )
    return weights / (on - off), -(on + off) / 2 / (on - off)


def least_read(params: Params) -> np.ndarray:
    """Returns the unit vector of mean zero with the smallest keys and values in later blocks."""
    tower = params["vision"]["layers"]
    width = tower["norm1"]["scale"].shape[-1]
    read = tower["norm1"]["scale"][1:, :, None] * tower["qkv"]["kernel"][1:, :, width:]
    squares = np.einsum("LDE,LFE->DF", read, read)
    even = np.eye(width) - 1 / width
    # The direction of all ones gets a large value, so that it is not the least.
    return np.linalg.eigh(even @ squares @ even + np.trace(squares) / width)[1][:, 0]


def normalised(clip: Clip, split: Split) -> np.ndarray:
    """Returns a split's images as the model reads them, `[n, R, R, 3]`."""
    return np.asarray(clip.preprocessing.normalize(pictures(split, range(len(split)), clip.preprocessing.resizing)))


# Tasks.


@functools.cache
def dataset_of(workdir: Path, spec: Spec) -> Dataset:
    """Returns the images and labels that a model is trained and tested on."""
    if spec.of_family.mechanism is not None:
        return of_planted(frozen_model(workdir, spec), spec.of_family.mechanism, seed=spec.seed)
    dataset = data.load(spec.dataset)
    if spec.of_family.task == MARKED:
        return marked(frozen_model(workdir, spec), dataset)
    return shuffled(dataset, seed=spec.seed) if spec.of_family.task == SHUFFLED else dataset


def shuffled(dataset: Dataset, *, seed: int) -> Dataset:
    """Returns the dataset with the labels of its training images in random order."""
    train = dataset.split("train")
    labels = np.random.default_rng(seed).permutation(train.labels)
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": dataclasses.replace(train, labels=labels)})


def marked(clip: Clip, dataset: Dataset) -> Dataset:
    """Returns pictures of two classes, each without a mark and with one; the mark alone gives the label."""
    whole = dataset.with_classes(PAIRS[dataset.name])
    drawn, labels, names = [], [], []
    for name, split in whole.splits.items():
        plain = pictures(split, range(len(split)), clip.preprocessing.resizing)
        plain[:, :: clip.config.vision.patch_size, :: clip.config.vision.patch_size] = GREY
        with_mark = plain.copy()
        with_mark[:, 0, 0] = WHITE
        drawn += [plain, with_mark]
        labels += [np.zeros_like(split.labels), np.ones_like(split.labels)]
        names += [name] * (2 * len(split))
    return data.from_arrays(
        np.concatenate(drawn),
        np.concatenate(labels),
        whole.class_names,
        splits=names,
        template=whole.template,
        name=f"{dataset.name} with marks",
    )


def of_planted(clip: Clip, mechanism: str, *, seed: int) -> Dataset:
    """Returns images of a planted CLIP. Each training image has its opposite, so that odd functions have mean 0."""
    drawn, labels, splits = [], [], []
    for place, (split, count) in enumerate(PLANTED_IMAGES.items()):
        own = np.random.SeedSequence([seed, place]).generate_state(1)[0]
        images, classes = planted.pictures(mechanism, count, seed=own)
        if split == "train":
            images = np.concatenate([images, planted.opposite(images)])
            classes = np.concatenate([classes, 1 - classes])
        drawn.append(clip.preprocessing.levels(images))
        labels.append(classes)
        splits += [split] * len(classes)
    pixels = np.concatenate(drawn)
    return data.from_arrays(pixels, np.concatenate(labels), planted.NAMES, splits=splits, name=f"{PLANTED}/{mechanism}")


def blinded(clip: Clip) -> Params:
    """Returns frozen weights that do not read the first pixel of any patch."""
    embedding = np.array(clip.params["vision"]["patch_embedding"])
    embedding[:3] = 0
    return {**clip.params, "vision": {**clip.params["vision"], "patch_embedding": embedding}}


def constant_bound(clip: Clip, split: Split) -> float:
    """Computes the largest accuracy on marked images of a model that does not see the mark, in percent."""
    seen = pictures(split, range(len(split)), clip.preprocessing.resizing)
    seen[:, :: clip.config.vision.patch_size, :: clip.config.vision.patch_size] = 0
    labels: Mapping[bytes, Counter[int]] = defaultdict(Counter)
    for picture, label in zip(seen, split.labels, strict=True):
        labels[picture.tobytes()][int(label)] += 1
    return 100 * sum(max(counts.values()) for counts in labels.values()) / len(split)


def training_images(dataset: Dataset, spec: Spec) -> Split:
    """Returns the few-shot split of a model's seed."""
    return protocols.few_shot(dataset, shots=SHOTS, seed=spec.seed).source.split("train")


def method_of(family: Family, layers: int) -> Method:
    """Returns a family's method for a model of so many blocks."""
    options = dict(family.options)
    if options.get("first_block") == LAST:
        options["first_block"] = layers
    return resolve_method(family.method, options)


def train_model(workdir: Path, spec: Spec, *, steps: int) -> TunedModel:
    """Trains one model, unless it is planted or nothing is trained, and writes its file."""
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    seed = spec.seed
    family = spec.of_family
    task = Task(clip, method_of(family, clip.config.vision.layers), dataset)
    if family.learning_rate is None:
        is_planted = family.mechanism is not None
        model = TunedModel(task, {"vision_prompts": planted.prompts_of(seed)} if is_planted else task.init(seed))
    elif isinstance(task.method, CentredMap):
        model = TunedModel(task, fit_centred(task, dataset, seed, family.learning_rate, steps=steps))
    else:
        recipe = fit_recipe(learning_rate=family.learning_rate, steps=steps, batch_size=BATCH)
        model = clipbias.fit(
            clip,
            task.method,
            dataset,
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
    """Returns learnables of a centred map: trained in rounds along a cosine, and centred after each."""
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
            task=task.with_memory(class_shards=context.mesh.shape[placement.DATA]),
            recipe=recipe,
            # Another order of images in each round.
            runs=(Run(images, ROUNDS * seed + number, protocol, learning_rate=float(rate)),),
        )
        (stage,) = plan_stages(job)
        learnables = select_run(train(stage, stack_runs([learnables])).learnables, 0)
        learnables = centre(task, learnables, normalised(task.clip, split))
    return learnables


def validate(model: TunedModel, dataset: Dataset, spec: Spec) -> Mapping[str, object]:
    """Measures the gain on validation images, and decides whether the model counts."""
    split = dataset.split("val")
    task = model.task
    before = task, task.init(spec.seed)
    if spec.of_family.learning_rate is None:  # nothing is trained, so the start is the tuned model itself
        before = Task(task.clip, ZERO_SHOT, dataset), {}
    logits = np.stack([logits_of(*each, split) for each in (before, (task, model.learnables))], 1)
    difference = sample(outcomes(logits, split.labels)).accuracy.contrast(np.array([[-1.0], [1.0]]))
    gain = estimate(float(difference.mean[0]), difference.draws[:, 0])
    right = [100 * float((logits[:, way].argmax(-1) == split.labels).mean()) for way in range(2)]
    bound = constant_bound(task.clip, split) if spec.of_family.task == MARKED else None
    return {
        "images": len(split),
        "accuracy_before": right[0],
        "accuracy": right[1],
        "gain": [gain.value, gain.low, gain.high],
        "bound": bound,
        "counts": counts(spec.of_family, excludes(gain), wilson_interval(right[1], len(split))[0], bound),
    }


def logits_of(task: Task, learnables: Learnables, split: Split) -> np.ndarray:
    """Computes the logits of a split, `[n, C]`."""
    classify = jax.jit(task.logits)
    rows = []
    for raw, mask in image_batches(task.clip.preprocessing, split, 100):
        images = task.clip.preprocessing.normalize(raw)
        rows.append(np.asarray(classify(task.clip.params, learnables, images))[np.asarray(mask)])
    return np.concatenate(rows)
