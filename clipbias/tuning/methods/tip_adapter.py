"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022, arXiv 2207.09519): a cache of the training images' features.

The authors search α and β on ImageNet's test images, and select the epoch of Tip-Adapter-F on the test images of each
dataset. Here validation images of each dataset or held-out images select α and β (`data.held_out`), and Tip-Adapter-F
uses the last epoch.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning import on_host
from clipbias.tuning.features import COSINE_SCALE, Features, Samples, Sampling, cosines, unit_length
from clipbias.tuning.method import CONSTANTS, FeatureMethod, Kind, Learnables, Options, Preset
from clipbias.tuning.prompts import FrozenTowers
from clipbias.tuning.recipe import AUTHORS, MOST, Recipe, RecipeName

Weight = Annotated[float, Range(0, 1e6)]

# Points of the search, from the lowest value on. Neither α nor β reaches its maximum.
BETAS = 200
ALPHA_COUNT = 20
LOWEST = 0.1
# The search takes validation images in chunks with so many affinities.
CHUNK = 2_000_000

# For each dataset: the initial α, the largest α and the largest β of the search.
SEARCHES = {
    "caltech101": (3.0, 5.0, 12.0),
    "dtd": (2.0, 13.0, 13.0),
    "eurosat": (2.0, 10.0, 12.0),
    "fgvc_aircraft": (5.0, 30.0, 30.0),
    "food101": (1.17, 10.0, 10.0),
    "imagenet": (1.17, 3.0, 7.0),
    "oxford_flowers": (10.0, 50.0, 50.0),
    "oxford_pets": (1.17, 3.0, 7.0),
    "stanford_cars": (3.0, 10.0, 20.0),
    "sun397": (1.17, 10.0, 12.0),
    "ucf101": (1.17, 3.0, 7.0),
}
DATASETS: dict[str, Options] = {
    name: {"alpha": alpha, "alpha_max": alpha_max, "beta_max": beta_max}
    for name, (alpha, alpha_max, beta_max) in SEARCHES.items()
}
DATASETS["imagenet"] = {**DATASETS["imagenet"], "templates": "imagenet_select"}


@dataclasses.dataclass(frozen=True)
class TipAdapter(FrozenTowers, FeatureMethod):
    """`100 x Tᵀ + α exp(-β (1 - x keysᵀ)) V`, with `x = unit(f)` and the one-hot labels `V [N, C]` of the keys.

    A key is the mean of an image's raw features over ten augmentations, then normalised. The search tries 200 values of
    β from 0.1 to `beta_max`, and 20 of α for each; it selects the first of the best pairs. Classes that training did
    not see get the zero-shot logit alone.

    Attributes:
      alpha, beta: values without validation images.
      alpha_max, beta_max: bounds of the search.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets = {"tip_adapter": Preset("Tip-Adapter", order=520)}
    kind = Kind.TRAINING_FREE
    trains = False
    scale = COSINE_SCALE
    datasets = DATASETS

    alpha: Weight = 1.17
    beta: Weight = 1.0
    alpha_max: Weight = 3.0
    beta_max: Weight = 7.0

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # No key yet: the axis of length 0 stands for any number of training images.
        keys = np.zeros((0, clip.config.projection_width), np.float32)
        return self._learnables(keys, np.zeros(0), self.alpha, self.beta)

    def _learnables(self, keys: np.ndarray, labels: np.ndarray, alpha: float, beta: float) -> Learnables:
        settings = {"labels": labels.astype(np.int32), "alpha": np.float32(alpha), "beta": np.float32(beta)}
        # α, β and labels get no gradient, nor do keys that are a cache.
        return {"keys": keys, CONSTANTS: settings} if self.trains else {CONSTANTS: {"keys": keys, **settings}}

    def _keys(self, learnables: Learnables) -> jax.Array:
        return (learnables if self.trains else learnables[CONSTANTS])["keys"]

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        constants = learnables[CONSTANTS]
        # A label outside the classes has a row of zeros: its key votes for no class.
        values = jax.nn.one_hot(constants["labels"], features.text.shape[1])
        distances = 1 - unit_length(features.image) @ self._keys(learnables).T
        cached = jnp.exp(-constants["beta"] * distances) @ values
        return self.scale * cosines(features) + constants["alpha"] * cached

    def sampling(self) -> Sampling:
        # The authors' crops: random ones of 50 to 100 % of the image.
        return Sampling(passes=10, crop=0.5, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        # The mean of raw features, then normalised: the authors' order. Means of unit vectors would weigh augmentations
        # equally.
        keys = on_host.unit_rows(samples.features.mean(0, dtype=np.float64))
        # Keys that train are searched behind their training, in `finish`.
        alpha, beta = (self.alpha, self.beta) if self.trains else self._search(keys, samples.labels, samples)
        return self._learnables(keys.astype(np.float32), samples.labels, alpha, beta)

    def _search(self, keys: np.ndarray, labels: np.ndarray, samples: Samples) -> tuple[float, float]:
        """α and β: the first of the best pairs on the validation images, in the order β, then α."""
        validation = on_host.validation_features(samples)
        if validation is None:
            return self.alpha, self.beta
        alphas = LOWEST + np.arange(ALPHA_COUNT) * (self.alpha_max - LOWEST) / ALPHA_COUNT
        betas = LOWEST + np.arange(BETAS) * (self.beta_max - LOWEST) / BETAS
        cache = Cache(keys, labels, self.scale * on_host.text_classifier(samples.text))
        correct = count_correct(cache, *validation, alphas, betas)
        # The authors' search replaces the initial values only by an accuracy above 0.
        if not correct.any():
            return self.alpha, self.beta
        best_beta, best_alpha = np.unravel_index(correct.argmax(), correct.shape)
        # Equal accuracies are common among few images: there the lowest cross-entropy among them decides.
        if samples.few_validation_images:
            pairs = np.argwhere(correct == correct.max())
            losses = pair_losses(cache, *validation, [(alphas[j], betas[i]) for i, j in pairs])
            best_beta, best_alpha = pairs[int(np.argmin(losses))]
        return float(alphas[best_alpha]), float(betas[best_beta])

    def searched_options(self, learnables: Learnables) -> Mapping[str, float]:
        return {name: on_host.shortest(learnables[CONSTANTS][name]) for name in ("alpha", "beta")}

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        constants = learnables[CONSTANTS]
        # Keys are found by label, not by position: a class that is left out takes its keys with it.
        entries, places = np.nonzero(np.asarray(constants["labels"])[:, None] == labels)
        keys = np.asarray(self._keys(learnables))[entries]
        return self._learnables(keys, places, constants["alpha"], constants["beta"])


@dataclasses.dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Tip-Adapter with trained keys `[N, d]`. Training uses the initial α and β; the search follows.

    Attributes:
      epochs: of the authors' recipe: AdamW at 1e-3 (epsilon 1e-4, decay 1e-2), a cosine to 0, batches of 256.
      recipe: the "authors'", or "common".
    """

    presets = {"tip_adapter_f": Preset("Tip-Adapter-F", order=530)}
    kind = Kind.HEAD
    trains = True
    datasets = {**DATASETS, "eurosat": {**DATASETS["eurosat"], "epochs": 100}}

    epochs: Annotated[int, Range(1, MOST)] = 20
    recipe: RecipeName = AUTHORS

    def finish(self, learnables: Learnables, samples: Samples) -> Learnables:
        alpha, beta = self._search(learnables["keys"], samples.labels, samples)
        return self._learnables(learnables["keys"], samples.labels, alpha, beta)

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return dataclasses.replace(
            common,
            learning_rate=1e-3,
            epochs=self.epochs,
            warmup_epochs=0,
            batch_size=256,
            weight_decay=1e-2,
            optimizer="adamw",
            epsilon=1e-4,
            schedule="steps",
            keep_last=True,
            crop=0.5,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """A cache model without α and β: keys `[N, d]` with their labels `[N]`, and `100 T [C, d]`."""

    keys: np.ndarray
    labels: np.ndarray
    classifier: np.ndarray


def pair_losses(
    cache: Cache, features: np.ndarray, labels: np.ndarray, pairs: Sequence[tuple[float, float]]
) -> list[float]:
    """The mean cross-entropy of few images `[n, d]` with labels `[n]` for each pair of α and β."""
    x = on_host.unit_rows(features)
    zero_shot = x @ cache.classifier.T
    distances = 1 - x @ np.asarray(cache.keys, np.float64).T
    values = np.eye(zero_shot.shape[1])[cache.labels]
    losses = []
    # Pairs come ordered by β, and the exponentials of a β serve all its α.
    latest = None
    for alpha, beta in pairs:
        if beta != latest:
            cached = np.exp(-beta * distances) @ values
            latest = beta
        losses.append(on_host.mean_cross_entropy(zero_shot + alpha * cached, labels))
    return losses


def count_correct(
    cache: Cache, features: np.ndarray, labels: np.ndarray, alphas: np.ndarray, betas: np.ndarray
) -> np.ndarray:
    """The number of images `[n, d]` that each pair classifies correctly: int `[len(betas), len(alphas)]`."""
    # Keys of a class are neighbours, so that `reduceat` sums the affinities of a class without a product with one-hot
    # labels.
    order = np.argsort(cache.labels, kind="stable")
    present, starts = np.unique(cache.labels[order], return_index=True)
    keys = np.asarray(cache.keys, np.float64)[order]
    rows = max(1, CHUNK // len(keys))

    def count_chunk(first: int) -> np.ndarray:
        chunk = slice(first, first + rows)
        x = on_host.unit_rows(features[chunk])
        zero_shot = x @ cache.classifier.T
        distances = 1 - x @ keys.T
        affinities = np.exp(-betas[0] * distances)
        # `exp(-(β + δ) d) = exp(-β d) exp(-δ d)`: with evenly spaced β a product replaces the exponential from one to
        # the next.
        step = np.exp(-(betas[1] - betas[0]) * distances)
        cached = np.zeros_like(zero_shot)
        logits = np.empty_like(zero_shot)
        correct = np.zeros((len(betas), len(alphas)), np.int64)
        for i in range(len(betas)):
            cached[:, present] = np.add.reduceat(affinities, starts, axis=1)
            for j, alpha in enumerate(alphas):
                np.multiply(cached, alpha, out=logits)
                np.add(logits, zero_shot, out=logits)
                correct[i, j] = (logits.argmax(-1) == labels[chunk]).sum()
            np.multiply(affinities, step, out=affinities)
        return correct

    # NumPy releases the interpreter's lock in these loops, and counts of chunks add up in any order.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(count_chunk, range(0, len(labels), rows)), np.zeros((len(betas), len(alphas)), np.int64))
