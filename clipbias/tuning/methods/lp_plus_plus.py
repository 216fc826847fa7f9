"""LP++ (Huang et al. 2024, arXiv 2404.02285): a linear probe blended with the texts, and steps of a computed length.

The step that is best on validation images is kept, at most K of each class for K shots; without validation images the
last one is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning.closed_form import accuracy, class_means, cosines, softmax, text_classifier, unit_rows, validation
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.features import Features, Samples, Sampling, unit_length
from clipbias.tuning.frozen_towers import FrozenTowers
from clipbias.tuning.method import Learnables
from clipbias.tuning.preset import Preset

# What α starts at, beside the mean cosine of images and their texts; and how many steps of W lie between its own.
START, EVERY = 250.0, 10


@dataclasses.dataclass(frozen=True)
class LPPlusPlus(FrozenTowers, FeatureMethod):
    """`x Wᵀ + b + α ⊙ (x Tᵀ)` with `x = unit(f)`, trained with cross-entropy and without a temperature.

    It is trained on the host. `W_c` starts at the sum of its class's `x`, `α` at one number for all classes. W and b
    take full-batch SGD steps of momentum 0.9 at the rate `4 N / λmax(XᵀX)`. After every tenth of them `α -= lr_α G`,
    `lr_α = N / (4 max_c Σ_n (x_n·T_c)²)`, where `G` is, as in the authors' program, the sum of α's gradients over all
    steps so far.

    Attributes:
      steps: of W and b.
      templates: a choice of `tuning.templates` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"lp_plus_plus": Preset("LP++", order=550)}
    trains: ClassVar[bool] = False
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"imagenet": {"templates": "imagenet_select"}}

    steps: Annotated[int, Range(1)] = 300

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        classes, width = len(class_names), clip.config.projection_width
        return {
            "weight": np.zeros((classes, width), np.float32),
            "bias": jax.random.uniform(rng, (classes,), minval=-1, maxval=1) / width**0.5,
            "alpha": np.zeros(classes, np.float32),
        }

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        own = unit_length(features.image) @ learnables["weight"].T + learnables["bias"]
        return own + learnables["alpha"] * cosines(features)

    def sampling(self) -> Sampling:
        return Sampling(passes=1, crop=0.5, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        x, labels, texts = unit_rows(samples.features[0]), samples.labels, text_classifier(samples.text)
        means = class_means(x, labels, len(texts))
        similar = x @ texts.T  # [N, C]
        count, own = len(x), (np.arange(len(x)), labels)
        weight = means * np.bincount(labels, minlength=len(texts))[:, None]
        bias = np.asarray(learnables["bias"], np.float64)
        alpha = np.full(len(texts), START * (means * texts).sum(-1).mean())
        rate = 4 * count / np.linalg.eigvalsh(x.T @ x)[-1]
        alpha_rate = count / (4 * np.square(similar).sum(0).max())
        chosen = validation(samples, samples.shots)
        if chosen is not None:
            x_chosen, truth = unit_rows(chosen[0]), chosen[1]
            similar_chosen = x_chosen @ texts.T
        kept, best = (weight, bias, alpha), 0.0
        velocity, bias_velocity, gathered = np.zeros_like(weight), np.zeros_like(bias), np.zeros_like(alpha)
        for step in range(1, self.steps + 1):
            errors = softmax(x @ weight.T + bias + alpha * similar)
            errors[own] -= 1
            errors /= count
            velocity = 0.9 * velocity + errors.T @ x
            bias_velocity = 0.9 * bias_velocity + errors.sum(0)
            gathered = gathered + (errors * similar).sum(0)
            weight, bias = weight - rate * velocity, bias - rate * bias_velocity
            if step % EVERY == 0:
                alpha = alpha - alpha_rate * gathered
            found = best
            if chosen is not None:
                found = accuracy(x_chosen @ weight.T + bias + alpha * similar_chosen, truth)
            if found >= best:  # of equal steps the last
                kept, best = (weight, bias, alpha), found
        return {name: value.astype(np.float32) for name, value in zip(("weight", "bias", "alpha"), kept, strict=True)}
