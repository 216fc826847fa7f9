"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022, arXiv 2207.09519): a cache of the training images' features.

Its authors search α and β on ImageNet's test images, and keep the epoch of Tip-Adapter-F that is best on the test
images of each dataset. Here the whole validation split decides α and β on every dataset, and Tip-Adapter-F keeps the
last epoch. Without validation images α and β stay as they start. Tip-Adapter-F trains as its authors do by default
(`recipe="common"` takes the project's recipe), on features of fresh augmentations: a step runs neither tower. The
training images are the protocol's picks, not those that the authors' program draws.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning.closed_form import COSINE_SCALE, cosines, text_classifier, unit_rows, validation
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.features import Features, Samples, Sampling, unit_length
from clipbias.tuning.frozen_towers import FrozenTowers
from clipbias.tuning.method import CONSTANTS, Learnables
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.recipe import AUTHORS, MOST, Recipe, RecipeName

Weight = Annotated[float, Range(0, 1e6)]

# Points of the search: β outside, α inside; neither reaches its maximum.
BETAS, ALPHAS, LOWEST = 200, 20, 0.1
# Numbers in one part of the affinities of a search, which goes over validation images part by part.
PART = 2_000_000

# Of each dataset: α at the start, the largest α and the largest β of the search.
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
DATASETS: dict[str, dict[str, Any]] = {
    name: {"alpha": alpha, "alpha_max": alpha_max, "beta_max": beta_max}
    for name, (alpha, alpha_max, beta_max) in SEARCHES.items()
}
DATASETS["imagenet"]["templates"] = "imagenet_select"


@dataclasses.dataclass(frozen=True)
class TipAdapter(FrozenTowers, FeatureMethod):
    """`100 x Tᵀ + α exp(-β (1 - x keysᵀ)) V`, with `x = unit(f)` and the one-hot labels `V [N, C]` of the keys.

    A key is the mean of an image's features, as they are, over ten augmentations, of unit length. The search tries 200
    values of β from 0.1 up to `beta_max` and for each 20 of α; the first of the best is taken. Keys have no text in
    them: classes that training did not see get the zero-shot logit alone.

    Attributes:
      alpha, beta: where there are no validation images.
      alpha_max, beta_max: bounds of the search.
      templates: a choice of `tuning.templates` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"tip_adapter": Preset("Tip-Adapter", order=520)}
    kind: ClassVar[Kind | None] = Kind.TRAINING_FREE
    trains: ClassVar[bool] = False
    scale: ClassVar[float] = COSINE_SCALE
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = DATASETS

    alpha: Weight = 1.17
    beta: Weight = 1.0
    alpha_max: Weight = 3.0
    beta_max: Weight = 7.0

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        keys = np.zeros((0, clip.config.projection_width), np.float32)
        return self._learnables(keys, np.zeros(0), self.alpha, self.beta)

    def _learnables(self, keys: np.ndarray, labels: np.ndarray, alpha: float, beta: float) -> Learnables:
        return {CONSTANTS: {"keys": keys, **_settings(labels, alpha, beta)}}

    def _keys(self, learnables: Learnables) -> Any:
        return learnables[CONSTANTS]["keys"]

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        constants = learnables[CONSTANTS]
        values = jax.nn.one_hot(constants["labels"], features.text.shape[1])
        distances = 1 - unit_length(features.image) @ self._keys(learnables).T
        cached = jnp.exp(-constants["beta"] * distances) @ values
        return self.scale * cosines(features) + constants["alpha"] * cached

    def sampling(self) -> Sampling:
        return Sampling(passes=10, crop=0.5, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        keys = unit_rows(samples.features.mean(0, dtype=np.float64))
        alpha, beta = self._search(keys, samples.labels, samples)
        return self._learnables(keys.astype(np.float32), samples.labels, alpha, beta)

    def _search(self, keys: np.ndarray, labels: np.ndarray, samples: Samples) -> tuple[float, float]:
        """α and β: the first pair, β outside and α inside, that no other beats on the validation images."""
        chosen = validation(samples)
        if chosen is None:
            return self.alpha, self.beta
        alphas = LOWEST + np.arange(ALPHAS) * (self.alpha_max - LOWEST) / ALPHAS
        betas = LOWEST + np.arange(BETAS) * (self.beta_max - LOWEST) / BETAS
        correct = count_correct(*chosen, keys, labels, self.scale * text_classifier(samples.text), alphas, betas)
        if not correct.any():
            return self.alpha, self.beta
        best_beta, best_alpha = np.unravel_index(correct.argmax(), correct.shape)
        return float(alphas[best_alpha]), float(betas[best_beta])

    def transfer(
        self, learnables: Learnables, labels: Sequence[int] | None, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        # The label behind the last class has a row of zeros in V: its keys count for no class.
        renamed = np.full(source.shape[1], target.shape[1], np.int32)
        if labels is not None:
            renamed[np.asarray(labels)] = np.arange(target.shape[1])
        constants = learnables[CONSTANTS]
        return {**learnables, CONSTANTS: {**constants, "labels": renamed[np.asarray(constants["labels"])]}}


@dataclasses.dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys `[N, d]` are trained, at the first α and β, and then not of unit length any more.

    α and β are searched after training.

    Attributes:
      epochs: of the authors' recipe: AdamW at 1e-3 (epsilon 1e-4, decay 1e-2), a cosine to 0, batches of 256.
      recipe: the "authors'", or "common".
    """

    presets: ClassVar[Mapping[str, Preset]] = {"tip_adapter_f": Preset("Tip-Adapter-F", order=530)}
    kind: ClassVar[Kind | None] = Kind.HEAD
    trains: ClassVar[bool] = True
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: options | ({"epochs": 100} if name == "eurosat" else {}) for name, options in DATASETS.items()
    }

    epochs: Annotated[int, Range(1, MOST)] = 20
    recipe: RecipeName = AUTHORS

    def _learnables(self, keys: np.ndarray, labels: np.ndarray, alpha: float, beta: float) -> Learnables:
        return {"keys": keys, CONSTANTS: _settings(labels, alpha, beta)}

    def _keys(self, learnables: Learnables) -> Any:
        return learnables["keys"]

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        keys = unit_rows(samples.features.mean(0, dtype=np.float64)).astype(np.float32)
        return self._learnables(keys, samples.labels, self.alpha, self.beta)

    def finish(self, learnables: Learnables, samples: Samples) -> Learnables:
        alpha, beta = self._search(learnables["keys"], samples.labels, samples)
        return self._learnables(learnables["keys"], samples.labels, alpha, beta)

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        if self.recipe != AUTHORS:
            return common
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


def _settings(labels: np.ndarray, alpha: float, beta: float) -> dict[str, Any]:
    return {"labels": labels.astype(np.int32), "alpha": np.float32(alpha), "beta": np.float32(beta)}


def count_correct(
    features: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    key_labels: np.ndarray,
    classifier: np.ndarray,
    alphas: np.ndarray,
    betas: np.ndarray,
) -> np.ndarray:
    """How many images each pair gets right: int `[len(betas), len(alphas)]`.

    Args:
      features, labels: `[n, d]` and `[n]`, of the images.
      keys, key_labels: `[N, d]` and `[N]`.
      classifier: `100 T [C, d]`.
      alphas, betas: what is tried; the betas are evenly spaced.
    """
    order = np.argsort(key_labels, kind="stable")  # keys of a class side by side, to be summed
    present, starts = np.unique(key_labels[order], return_index=True)
    keys = np.asarray(keys, np.float64)[order]

    def of_part(first: int) -> np.ndarray:
        part = slice(first, first + rows)
        x, own = unit_rows(features[part]), labels[part]
        plain = x @ classifier.T
        distances = 1 - x @ keys.T
        # From one β to the next, one product takes the place of an exponential.
        affinities, step = np.exp(-betas[0] * distances), np.exp(-(betas[1] - betas[0]) * distances)
        cached, logits = np.zeros_like(plain), np.empty_like(plain)
        found = np.zeros((len(betas), len(alphas)), np.int64)
        for i in range(len(betas)):
            cached[:, present] = np.add.reduceat(affinities, starts, axis=1)
            for j, alpha in enumerate(alphas):
                np.multiply(cached, alpha, out=logits)
                np.add(logits, plain, out=logits)
                found[i, j] = (logits.argmax(-1) == own).sum()
            np.multiply(affinities, step, out=affinities)
        return found

    rows = max(1, PART // len(keys))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(of_part, range(0, len(labels), rows)), np.zeros((len(betas), len(alphas)), np.int64))
