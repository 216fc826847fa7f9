"""Sections of a study that show single pictures: relevancy of examples, Fig. 6's maps, and the explorer's data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.typing import ArrayLike
from PIL import Image

from clipbias.analysis.attention import layer_maps, to_image, vision_totals
from clipbias.analysis.dataset_sections import compute_predictions, corrected, relevancy_maps
from clipbias.analysis.model import Model, why_no_maps, why_no_similarity
from clipbias.analysis.results import CHANGES, Average, Missing, Predictions
from clipbias.analysis.sections import Section
from clipbias.analysis.study import Batch, Computation, Request, Study, divide, for_each
from clipbias.analysis.words import token_labels
from clipbias.data import Split


@dataclasses.dataclass(frozen=True)
class SimilarityMaps:
    """Maps `[K, S, R, R]` in 0 … 1 of one tuned model."""

    zero_shot_cls: np.ndarray
    cls: np.ndarray
    prompts: np.ndarray  # 1 minus the mean distance to the prompts, scaled to 0 … 1
    rank_correlation: Average  # `[L]`, between `cls` and `prompts`, over the dataset
    count: int  # of images


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Fig. 6: `K` pictures, every example in every rotation; `None` where no model has prompts."""

    pictures: np.ndarray | None  # uint8 `[K, R, R, 3]`
    rotations: np.ndarray | None  # `[K]`, degrees
    layers: np.ndarray | None  # `[S]`
    models: dict[str, SimilarityMaps | Missing]


@dataclasses.dataclass(frozen=True)
class ExampleMaps:
    """Maps of the examples for the true class, by one model."""

    vision: np.ndarray  # `[K, M + V]`
    text: np.ndarray  # `[K, N]`
    logits: np.ndarray  # `[K, C]`
    words: tuple[tuple[str, ...], ...]  # of each picture's text, without EOS; the first of several texts of a class
    texts: int  # of each class


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures with their relevancy."""

    pictures: np.ndarray  # uint8 `[K, R, R, 3]`
    labels: np.ndarray  # `[K]`
    names: tuple[str, ...]
    models: dict[str, ExampleMaps | Missing]


@dataclasses.dataclass(frozen=True)
class ExploredModel:
    """Maps of `K` images, and of `P` pairs of an image and a class, uint8: value = q · scale / 255 (+ lowest)."""

    relevancy: np.ndarray  # `[P, M]`, over patches
    relevancy_scale: np.ndarray  # `[P]`
    relevancy_sum: np.ndarray  # `[P]`, over patches and prompts
    slot_relevancy: np.ndarray  # `[P, V]`
    text: np.ndarray  # `[P, N]`, over the text's tokens
    attention: np.ndarray  # `[K, L, M]`, of `[cls]`, mean over heads
    attention_scale: np.ndarray  # `[K, L]`
    slot_attention: np.ndarray  # `[K, L, V]`
    margin: np.ndarray  # `[K]`, the true class's logit less the best other's
    log_likelihood: np.ndarray  # `[K]`, of the true class, in nats
    distance: np.ndarray | None  # `[K, L, V, M]`, from every prompt to the patches
    distance_scale: np.ndarray | None  # `[K, L, V]`
    distance_lowest: np.ndarray | None  # `[K, L, V]`
    texts: int  # of each class
    words: dict[int, tuple[str, ...]]  # by class, of its text, without EOS


@dataclasses.dataclass(frozen=True)
class Exploration:
    """Images of the report's explorer."""

    images: np.ndarray  # `[K]`, numbers of the examples in the split
    pictures: np.ndarray  # uint8 `[K, S, S, 3]`, at most 224 pixels wide
    # `[P, 2]`: row of the image, 0 … K − 1, and class; its true one first, then those that models give it.
    pairs: np.ndarray
    names: tuple[str, ...]
    models: dict[str, ExploredModel | Missing]


EXAMPLE_COUNT = 4
ROTATIONS = (0, 90, 180, 270)  # degrees counter-clockwise, of Fig. 6


def choose_examples(study: Study, predictions: Predictions) -> np.ndarray:
    """Chooses the numbers of the examples: those that most tuned models correct, of different classes if possible."""
    labels = predictions.labels
    corrections = [set(corrected(predictions, model).tolist()) for model in study.tuned]
    # Pictures that several models correct show all of them at work.
    fixed_by = np.asarray([sum(index in fixed for fixed in corrections) for index in range(len(labels))])
    readable = np.flatnonzero(predictions.zero_shot >= 0)
    best_first = readable[np.argsort(-fixed_by[readable], kind="stable")]
    # The best image of each class, then all others: a sort by whether an image is the first of its class.
    is_later = pd.Series(labels[best_first]).duplicated().to_numpy()
    return best_first[np.argsort(is_later, kind="stable")][:EXAMPLE_COUNT]


def compute_examples(study: Study) -> Computation[Examples]:
    """Computes the relevancy of single pictures for their true class, by every model."""
    predictions = yield from compute_predictions(study)
    examples = choose_examples(study, predictions)
    pictures = study.pictures(examples)
    labels = study.split.labels[examples]

    def request_of(model: Model) -> Request:
        def step(batch: Batch) -> dict[str, jax.Array]:
            maps = relevancy_maps(study, model, batch["images"], batch["labels"])
            logits = study.predictor(model).logits(batch["images"], batch["mask"])
            return {"vision": maps.vision, "text": maps.text, "logits": logits}

        return Request(f"examples-{model.key}", "examples", examples, step)

    mapped, left_out = divide(study.models, why_no_maps)
    results = yield from for_each(mapped, request_of)
    models: dict[str, ExampleMaps | Missing] = {**left_out}
    for model in mapped:
        rows = results[model.key]
        models[model.key] = ExampleMaps(
            vision=rows["vision"].astype(np.float32),
            text=first_text(rows["text"]),
            logits=rows["logits"].astype(np.float32),
            words=tuple(tuple(token_labels(model.task, int(label))) for label in labels),
            texts=model.texts,
        )
    return Examples(pictures, labels, tuple(study.split.keys[int(index)] for index in examples), models)


EXAMPLES = Section(name="examples", title="Relevancy on example pictures", result=Examples, compute=compute_examples)


def first_text(relevancy: ArrayLike) -> np.ndarray:
    """Returns the relevancy `[P, N]` of every class's first text, from `[P, N]` or, with several texts, `[P, S, N]`."""
    texts = np.asarray(relevancy, np.float32)
    return texts if texts.ndim == 2 else texts[:, 0]


def compute_prompt_similarity(study: Study) -> Computation[Similarity]:
    """Computes Fig. 6: attention of `[cls]` without and with prompts, and nearness to prompts, in rotated images."""
    prompted, left_out = divide(study.tuned, why_no_similarity)
    models: dict[str, SimilarityMaps | Missing] = {**left_out}
    if not prompted:
        return Similarity(pictures=None, rotations=None, layers=None, models=models)
    count = study.clip.config.vision.layers
    # The first, the middle and the last two layers: as many as a figure can show.
    # A set: towers of few layers have some of these twice.
    layers = np.asarray(sorted({0, count // 2, max(count - 2, 0), count - 1}))
    totals = yield from vision_totals(study, prompted)
    predictions = yield from compute_predictions(study)
    upright = study.pictures(choose_examples(study, predictions))
    # As in the paper: prompts that resemble background should follow a rotated picture.
    pictures = np.stack([np.rot90(image, angle // 90) for image in upright for angle in ROTATIONS])
    zero_shot_cls = _layer_maps(study, study.zero_shot, pictures, layers)["cls"]
    for model in prompted:
        maps = _layer_maps(study, model, pictures, layers)
        correlation = totals[model.key]["rank_correlation"]
        models[model.key] = SimilarityMaps(
            zero_shot_cls=zero_shot_cls,
            cls=maps["cls"],
            prompts=maps["prompts"],
            rank_correlation=correlation.average,
            count=correlation.samples,
        )
    return Similarity(pictures=pictures, rotations=np.tile(ROTATIONS, len(upright)), layers=layers, models=models)


SIMILARITY = Section(
    name="similarity",
    title="Where [cls] looks, and what is like the prompts",
    result=Similarity,
    compute=compute_prompt_similarity,
)


def _layer_maps(study: Study, model: Model, pictures: np.ndarray, layers: np.ndarray) -> dict[str, np.ndarray]:
    """Computes maps `[K, S, R, R]` of pictures `[K, R, R, 3]` in some layers."""
    vision = study.clip.config.vision
    maps = study.in_passes(lambda images, mask: layer_maps(study, model, images), pictures)
    cls = _enlarged(maps["attention"][:, layers, : vision.patches], vision.image_size)
    enlarged = {"cls": np.asarray(cls, np.float32)}
    if "distance" in maps:
        distance = _enlarged(maps["distance"][:, layers].mean(2), vision.image_size)
        enlarged["prompts"] = 1 - np.asarray(distance, np.float32)
    return enlarged


_enlarged = jax.jit(to_image, static_argnums=1)


LARGEST_BYTES = 15_000_000  # of the explorer's data in a page, in base64
THUMBNAIL = 224  # pixels


def choose_images(study: Study, predictions: Predictions, count: int) -> np.ndarray:
    """Chooses at most `count` images of the study, in turn from every change of every tuned model, and every class."""
    images = study.images
    candidates = images[np.min([predictions.models[model.key][images] for model in study.models], 0) >= 0]
    groups = []
    for model in study.tuned or study.models[:1]:
        changes = predictions.changes(model.key)[candidates]
        for kind in range(len(CHANGES)):
            changed = candidates[changes == kind]
            # The first image of every class, then the second of every class, and so on.
            turn = pd.Series(changed).groupby(predictions.labels[changed]).cumcount()
            groups.append(changed[np.argsort(turn, kind="stable")].tolist())
    sample: list[int] = []
    while len(sample) < count and any(groups):
        for group in groups:
            # Models share many changes: an image that another group gave already does not count as this group's turn.
            while group and group[0] in sample:
                group.pop(0)
            if group and len(sample) < count:
                sample.append(group.pop(0))
    return np.sort(np.asarray(sample, int))


def bytes_per_image(study: Study) -> int:
    """Estimates the bytes of one image in a page: maps by layer, relevancy for two classes, and the image itself."""
    vision = study.clip.config.vision
    classes = 2
    models = [model for model in study.models if not why_no_maps(model.task)]
    maps = sum(vision.layers * vision.patches * (1 + model.prompts[0]) for model in models)
    maps += classes * len(models) * (vision.patches + 4 * study.clip.config.text.context_length)
    # Base64 takes four bytes for three; a compressed image takes about a byte for three pixels.
    return round(4 / 3 * (maps + min(vision.image_size, THUMBNAIL) ** 2 / 3))


def quantise(values: np.ndarray, *, low: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantises rows `[…, M]` to uint8 `q`, a `scale […]` and `lowest […]`: `lowest + q · scale / 255`, nearly.

    `lowest` is each row's smallest value with `low`, else 0, and no value may be below it.
    """
    values = np.asarray(values, np.float64)
    lowest = values.min(-1) if low else np.zeros(values.shape[:-1])
    scale = values.max(-1) - lowest
    # A row of equal values has no range: all of it is 0, and the scale says so.
    shares = (values - lowest[..., None]) / np.where(scale > 0, scale, 1)[..., None]
    return np.rint(255 * shares).astype(np.uint8), scale.astype(np.float32), lowest.astype(np.float32)


def compute_explore(study: Study) -> Computation[Exploration]:
    """Computes a few images' relevancy for true and predicted classes, `[cls]` attention, and distances to prompts."""
    predictions = yield from compute_predictions(study)
    # The page is one file: its size bounds the number of images.
    count = min(study.options.explore_images, max(1, LARGEST_BYTES // bytes_per_image(study)))
    images = choose_images(study, predictions, count)
    # Pairs of an image's row and a class: its true class first, then predicted classes.
    predicted = [predictions.models[model.key][images] for model in study.models]
    pairs = np.array(
        [
            (row, each)
            for row, label in enumerate(study.split.labels[images])
            for each in dict.fromkeys([label, *(of_model[row] for of_model in predicted)])
        ]
    )
    models, left_out = divide(study.models, why_no_maps)
    numbers, split = images[pairs[:, 0]], study.split
    keys = tuple(f"{split.keys[int(i)]} {label}" for i, label in zip(numbers, pairs[:, 1], strict=True))
    # A pair is an image with its class as the label: the requests' machinery then reads and explains it like any image.
    as_images = Split(keys, pairs[:, 1], lambda pair: split.read(int(numbers[pair])), split.source, split.upright)
    of_pairs = {model.key: _relevancy_of_pairs(study, model, as_images) for model in models}
    of_images = {model.key: _layers_of_images(study, model, images) for model in models}
    rows = yield list(of_pairs.values()) + list(of_images.values())
    by_model: dict[str, ExploredModel | Missing] = {**left_out}
    for model in models:
        pair_rows = rows[of_pairs[model.key].name]
        image_rows = rows[of_images[model.key].name]
        by_model[model.key] = _pack(study, model, np.unique(pairs[:, 1]).tolist(), pair_rows, image_rows)
    # The page shows whole pictures once, whatever the number of models.
    pictures = study.pictures(images)
    if pictures.shape[1] > THUMBNAIL:
        size = (THUMBNAIL, THUMBNAIL)
        # Box filtering averages whole pixels, and needs no kernel that rings at edges.
        pictures = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in pictures])
    return Exploration(
        images=images.astype(np.int32),
        pictures=pictures,
        pairs=pairs.astype(np.int32).reshape(-1, 2),
        names=tuple(study.split.keys[int(index)] for index in images),
        models=by_model,
    )


EXPLORE = Section(name="explore", title="Explore the images", result=Exploration, compute=compute_explore)


def _relevancy_of_pairs(study: Study, model: Model, pairs: Split) -> Request:
    def step(batch: Batch) -> dict[str, jax.Array]:
        maps = relevancy_maps(study, model, batch["images"], batch["labels"])
        return {"vision": maps.vision, "text": maps.text}

    title = f"{model.label}: relevancy to explore"
    return Request(f"explore-relevancy-{model.key}", title, np.arange(len(pairs)), step, split=pairs)


def _layers_of_images(study: Study, model: Model, images: np.ndarray) -> Request:
    """Requests `[cls]` attention and distances to prompts by layer, and the true class's margin and log-likelihood."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        logits = study.predictor(model).logits(batch["images"])
        return layer_maps(study, model, batch["images"]) | _margin_and_log_likelihood(logits, batch["labels"])

    return Request(f"explore-layers-{model.key}", f"{model.label}: attention to explore", images, step)


def _pack(
    study: Study, model: Model, explored: list[int], pair_rows: dict[str, np.ndarray], image_rows: dict[str, np.ndarray]
) -> ExploredModel:
    # A byte per patch: a page holds maps of many images, layers and models. Texts are of the explored classes alone.
    patches = study.clip.config.vision.patches
    vision = pair_rows["vision"]
    relevancy, relevancy_scale, _ = quantise(vision[:, :patches])
    attention, attention_scale, _ = quantise(image_rows["attention"][..., :patches])
    distance = quantise(image_rows["distance"], low=True) if "distance" in image_rows else (None, None, None)
    return ExploredModel(
        relevancy=relevancy,
        relevancy_scale=relevancy_scale,
        relevancy_sum=vision.sum(-1).astype(np.float32),
        slot_relevancy=vision[:, patches:].astype(np.float32),
        text=first_text(pair_rows["text"])[:, : int(np.max(model.task.tokens.end))],
        attention=attention,
        attention_scale=attention_scale,
        slot_attention=image_rows["attention"][..., patches:].astype(np.float32),
        margin=image_rows["margin"].astype(np.float32),
        log_likelihood=image_rows["log_likelihood"].astype(np.float32),
        distance=distance[0],
        distance_scale=distance[1],
        distance_lowest=distance[2],
        texts=model.texts,
        words={label: tuple(token_labels(model.task, label)) for label in explored},
    )


@jax.jit
def _margin_and_log_likelihood(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Computes the true class's margin, its logit less the best other's, and log-likelihood in nats, `[B]`."""
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits).max(-1)
    return {"margin": true - others, "log_likelihood": true - jax.nn.logsumexp(logits, axis=-1)}
