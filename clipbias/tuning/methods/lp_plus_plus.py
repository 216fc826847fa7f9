"""LP++ (Huang et al. 2024, arXiv 2404.02285): a linear probe blended with the texts, and steps of a computed length.

The result is the step that is best on validation images, at most K of each class for K shots; without validation images
it is the last step.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import jax
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning import on_host
from clipbias.tuning.features import Features, Samples, Sampling, cosines, unit_length
from clipbias.tuning.method import FeatureMethod, Learnables, Preset
from clipbias.tuning.prompts import FrozenTowers

# α starts at this factor times the mean cosine of images and their texts.
ALPHA_FACTOR = 250.0
STEPS_PER_ALPHA_STEP = 10


@dataclasses.dataclass(frozen=True)
class LPPlusPlus(FrozenTowers, FeatureMethod):
    """`x Wᵀ + b + α ⊙ (x Tᵀ)` with `x = unit(f)`, trained with cross-entropy and without a temperature.

    Training runs on the host. `W_c` starts at the sum of its class's `x`, `α` at one number for all classes. W and b
    take full-batch SGD steps with momentum 0.9 at the rate `4 N / λmax(XᵀX)`. After every tenth step `α -= lr_α G` with
    `lr_α = N / (4 max_c Σ_n (x_n·T_c)²)` and `G` the sum of α's gradients over all steps so far.

    Attributes:
      steps: number of steps of W and b.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets = {"lp_plus_plus": Preset("LP++", order=550)}
    trains = False
    datasets = {"imagenet": {"templates": "imagenet_select"}}

    steps: Annotated[int, Range(1)] = 300

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        classes = len(class_names)
        width = clip.config.projection_width
        return {
            "weight": np.zeros((classes, width), np.float32),
            # torch's start of a linear layer's bias; the weight is replaced in `support`.
            "bias": jax.random.uniform(rng, (classes,), minval=-1, maxval=1) / width**0.5,
            "alpha": np.zeros(classes, np.float32),
        }

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        linear = unit_length(features.image) @ learnables["weight"].T + learnables["bias"]
        return linear + learnables["alpha"] * cosines(features)

    def sampling(self) -> Sampling:
        return Sampling(passes=1, crop=0.5, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        x = on_host.unit_rows(samples.features[0])
        labels = samples.labels
        texts = on_host.text_classifier(samples.text)
        means = on_host.class_means(x, labels, len(texts))
        start = _Probe(
            # The sum of a class's rows, as the authors have it, and not their mean.
            weight=means * np.bincount(labels, minlength=len(texts))[:, None],
            bias=np.asarray(learnables["bias"], np.float64),
            alpha=np.full(len(texts), ALPHA_FACTOR * (means * texts).sum(-1).mean()),
        )
        validation = on_host.validation_features(samples, samples.shots)
        if validation is not None:
            validation_x = on_host.unit_rows(validation[0])
            validation_similarity = validation_x @ texts.T
        best = start
        best_score = 0.0
        for probe in _descend(start, x, labels, texts, self.steps):
            score = best_score
            if validation is not None:
                score = on_host.accuracy(probe.logits(validation_x, validation_similarity), validation[1])
            if score >= best_score:  # the last of equal steps, so that without validation images it is the last step
                best = probe
                best_score = score
        return {name: value.astype(np.float32) for name, value in dataclasses.asdict(best).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Probe:
    weight: np.ndarray
    bias: np.ndarray
    alpha: np.ndarray

    def logits(self, x: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """Logits `[N, C]` of unit rows `x [N, d]`, with their cosines `x Tᵀ [N, C]`."""
        return x @ self.weight.T + self.bias + self.alpha * similarity


def _descend(start: _Probe, x: np.ndarray, labels: np.ndarray, texts: np.ndarray, steps: int) -> Iterator[_Probe]:
    count = len(x)
    images = np.arange(count)
    similarity = x @ texts.T  # [N, C]
    # Rates from Lipschitz bounds of the loss: no learning rate to search.
    rate = 4 * count / np.linalg.eigvalsh(x.T @ x)[-1]
    alpha_rate = count / (4 * np.square(similarity).sum(0).max())
    probe = start
    velocity = np.zeros_like(start.weight)
    bias_velocity = np.zeros_like(start.bias)
    alpha_gradients = np.zeros_like(start.alpha)
    for step in range(1, steps + 1):
        # The gradient of the mean cross-entropy by the logits: probabilities less one-hot labels.
        errors = on_host.softmax(probe.logits(x, similarity))
        errors[images, labels] -= 1
        errors /= count
        # torch's momentum, which does not damp the gradient.
        velocity = 0.9 * velocity + errors.T @ x
        bias_velocity = 0.9 * bias_velocity + errors.sum(0)
        # Summed over all steps and never reset, as in the authors' code.
        alpha_gradients = alpha_gradients + (errors * similarity).sum(0)
        alpha = probe.alpha
        if step % STEPS_PER_ALPHA_STEP == 0:
            alpha = alpha - alpha_rate * alpha_gradients
        probe = _Probe(probe.weight - rate * velocity, probe.bias - rate * bias_velocity, alpha)
        yield probe
