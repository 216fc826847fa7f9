"""What a reader of the report explores: maps of single images under every model, in few bytes."""

from typing import Any

import jax
import numpy as np
from PIL import Image

from clipbias.data import Split
from clipbias.explain.dataset_sections import compute_predictions
from clipbias.explain.model import Model
from clipbias.explain.outcomes import outcomes
from clipbias.explain.passes import classify, layer_maps, relevancy_maps
from clipbias.explain.picture_sections import first_text
from clipbias.explain.results import CHANGES, TEXT_KINDS, changes
from clipbias.explain.scope import why_no_maps
from clipbias.explain.stream import Batch, Reading, Rows
from clipbias.explain.study import Section, Study
from clipbias.explain.tokens import text_kinds, token_labels

LARGEST_BYTES = 15_000_000  # of what there is to explore in a page, where three bytes take four letters
THUMBNAIL = 224


def choose_images(study: Study, predicted: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Numbers of at most `count` images of those that the causal test has, in ascending order.

    Every tuned model's kinds of change give one in turn, and a kind its classes in turn, while there are any.
    """
    candidates, labels = study.images, predicted["predictions/labels"]
    candidates = candidates[
        np.min([predicted[f"predictions/{model.key}"][candidates] for model in study.models], 0) >= 0
    ]
    kinds = [changes(predicted, model.key) for model in study.tuned or study.models[:1]]
    groups = [
        _classes_in_turn(candidates[of[candidates] == kind], labels) for of in kinds for kind in range(len(CHANGES))
    ]
    chosen: list[int] = []
    while len(chosen) < count and any(groups):
        for group in groups:
            while group and group[0] in chosen:
                group.pop(0)
            if group and len(chosen) < count:
                chosen.append(group.pop(0))
    return np.sort(np.asarray(chosen, int))


def _classes_in_turn(numbers: np.ndarray, labels: np.ndarray) -> list[int]:
    seen: dict[int, int] = {}
    turn = []
    for label in labels[numbers].tolist():
        seen[label] = turn_of = seen.get(label, -1) + 1
        turn.append(turn_of)
    return numbers[np.argsort(turn, kind="stable")].tolist()


def bytes_per_image(study: Study) -> int:
    """About how much an image takes of a page: its maps by layer, relevancy for two classes, and its picture."""
    vision, classes = study.clip.config.vision, 2
    models = [model for model in study.models if not why_no_maps(model.task)]
    maps = sum(vision.layers * vision.patches * (1 + model.prompts[0]) for model in models)
    maps += classes * len(models) * (vision.patches + 4 * study.clip.config.text.context_length)
    return round(4 / 3 * (maps + min(vision.image_size, THUMBNAIL) ** 2 / 3))


def quantise(values: np.ndarray, *, low: bool = False) -> tuple[np.ndarray, ...]:
    """Rows as uint8 `q`, the largest 255.

    Args:
      values: `[…, M]`; without `low` none below 0.
      low: whether the smallest is 0 in `q`, rather than 0 itself.

    Returns:
      `q [… , M]` and `scale […]`, with `values ≈ q · scale / 255`; with `low`, `lowest […]` as well, which is added.
    """
    values = np.asarray(values, np.float64)
    lowest = values.min(-1) if low else np.zeros(values.shape[:-1])
    scale = values.max(-1) - lowest
    shares = (values - lowest[..., None]) / np.where(scale > 0, scale, 1)[..., None]
    found = (np.rint(255 * shares).astype(np.uint8), scale.astype(np.float32))
    return (*found, lowest.astype(np.float32)) if low else found


def compute_explore(study: Study) -> Reading[Section]:
    """Relevancy for the classes in question, `[cls]` attention and nearness to prompts by layer, of a few images."""
    predicted = yield from compute_predictions(study)
    count = min(study.options.explore_images, max(1, LARGEST_BYTES // bytes_per_image(study)))
    chosen = choose_images(study, predicted, count)
    labels = study.split.labels[chosen]
    given = [predicted[f"predictions/{model.key}"][chosen] for model in study.models]
    pairs = np.array([(i, c) for i in range(len(chosen)) for c in dict.fromkeys([labels[i], *(g[i] for g in given)])])
    arrays: dict[str, np.ndarray] = {
        "explore/images": chosen.astype(np.int32),
        "explore/pictures": _thumbnails(study.pictures(chosen)),
        "explore/pairs": pairs.astype(np.int32).reshape(-1, 2),
    }
    scalars: dict[str, Any] = {"names": [study.split.keys[int(i)] for i in chosen]}
    reasons = {model.key: why_no_maps(model.task) for model in study.models}
    scalars |= {key: {"missing": reason} for key, reason in reasons.items() if reason}
    models = [model for model in study.models if not reasons[model.key]]
    pictures_of_pairs = _pairs(study, chosen[pairs[:, 0]], pairs[:, 1])
    of_pairs = {model.key: _relevancy_of_pairs(study, model, pictures_of_pairs) for model in models}
    of_images = {model.key: _layers_of_images(study, model, chosen) for model in models}
    answers = yield [*of_pairs.values(), *of_images.values()]
    for model in models:
        found = _packed_relevancy(study, model, answers[of_pairs[model.key].name])
        found |= _packed_layers(study, answers[of_images[model.key].name])
        arrays |= {f"explore/{model.key}/{name}": value for name, value in found.items()}
        classes, kinds = np.unique(pairs[:, 1]).tolist(), text_kinds(model.task)
        tokens = {label: token_labels(model.task, label) for label in classes}
        scalars[model.key] = {
            "tokens": tokens,
            "texts": model.texts,
            "kinds": {label: [TEXT_KINDS[kind] for kind in kinds[label][: len(tokens[label])]] for label in classes},
        }
    return arrays, scalars


def _thumbnails(pictures: np.ndarray) -> np.ndarray:
    if pictures.shape[1] <= THUMBNAIL:
        return pictures
    size = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in pictures])


def _pairs(study: Study, images: np.ndarray, classes: np.ndarray) -> Split:
    """Pairs of an image's number and a class, as images with that label."""
    keys = tuple(f"{study.split.keys[int(i)]} {label}" for i, label in zip(images, classes, strict=True))
    return Split(keys, classes, lambda pair: study.split.read(int(images[pair])))


def _relevancy_of_pairs(study: Study, model: Model, pairs: Split) -> Rows:
    def step(batch: Batch) -> dict[str, jax.Array]:
        maps, by_layer = relevancy_maps(study, model, batch["images"], batch["labels"])
        return {"vision": by_layer, "text": maps.text}

    name, title = f"explore-relevancy-{model.key}", f"{model.label}: relevancy to explore"
    return Rows(name, title, np.arange(len(pairs)), step, split=pairs)


def _packed_relevancy(study: Study, model: Model, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Relevancy of every pair, as `explore/{model}/…` has it."""
    patches = study.clip.config.vision.patches
    by_layer, length = rows["vision"], int(np.max(model.task.tokens.end))
    vision = by_layer[:, 0]
    relevancies, scale = quantise(vision[:, :patches])
    whole = by_layer.sum(-1)
    prompt_share = by_layer[..., patches:].sum(-1) / np.where(whole > 0, whole, 1)
    never_counted = study.clip.config.vision.layers - by_layer.shape[1]  # layers below the first that counts
    return {
        "prompt_share_from": np.pad(prompt_share, ((0, 0), (never_counted, 0)), mode="edge").astype(np.float32),
        "relevancy": relevancies,
        "relevancy_scale": scale,
        "relevancy_sum": vision.sum(-1).astype(np.float32),
        "slot_relevancy": vision[:, patches:].astype(np.float32),
        "text": first_text(rows["text"])[:, :length],
    }


def _layers_of_images(study: Study, model: Model, images: np.ndarray) -> Rows:
    """Where `[cls]` looks and how near every slot is, layer by layer, and how sure the model is of the true class."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        surety = _surety(classify(study, model, batch["images"]), batch["labels"])
        return layer_maps(study, model, batch["images"]) | surety

    return Rows(f"explore-layers-{model.key}", f"{model.label}: attention to explore", images, step)


def _packed_layers(study: Study, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    patches = study.clip.config.vision.patches
    attention, scale = quantise(rows["attention"][..., :patches])
    found = {
        "attention": attention,
        "attention_scale": scale,
        "slot_attention": rows["attention"][..., patches:].astype(np.float32),
        "margin": rows["margin"].astype(np.float32),
        "log_likelihood": rows["log_likelihood"].astype(np.float32),
    }
    if "distance" in rows:
        names = ("distance", "distance_scale", "distance_lowest")
        found |= dict(zip(names, quantise(rows["distance"], low=True), strict=True))
    return found


@jax.jit
def _surety(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Margin and log-likelihood `[B]` of the true class."""
    found = outcomes(logits[None], labels)
    return {name: found[name][0] for name in ("margin", "log_likelihood")}
