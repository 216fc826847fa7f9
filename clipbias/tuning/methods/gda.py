"""GDA (Wang et al. 2024, arXiv 2402.04087): a Gaussian classifier of image features, added to zero-shot CLIP.

The authors select α on ImageNet's test images; here validation images of each dataset or held-out images select it
(`data.held_out`). In the authors' base-to-new experiments the covariance is not shrunk, and new classes borrow base
images: `config.method_options = {"gda": {"covariance": "classes", "keep_rows": True}}`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import jax
import numpy as np

from clipbias.checks import Choices, Range
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning import on_host
from clipbias.tuning.features import COSINE_SCALE, Features, Samples, Sampling, cosines, unit_length
from clipbias.tuning.method import CONSTANTS, FeatureMethod, Kind, Learnables, Preset
from clipbias.tuning.prompts import FrozenTowers

ALPHAS = tuple(10.0**power for power in range(-4, 3))
# A class without images uses the rows nearest to its text, and copies of the text, in the authors' numbers.
NEIGHBOURS = 64
COPIES = 16


@dataclasses.dataclass(frozen=True)
class GDA(FrozenTowers, FeatureMethod):
    """`100 x Tᵀ + α (x Wᵀ + b)` with `x = unit(f)`, `W = μ P [C, d]`, `b_c = log(1/C) - ½ μ_cᵀ P μ_c`.

    `μ_c` is the mean of a class's rows, over ten augmentations of each image, and `P` the precision: for the covariance
    `S` of the `n` rows around their means, `d ((n - 1) S + tr(S) I)⁻¹`.

    Attributes:
      covariance: "shrunk" as above; "classes" for `P` the pseudo-inverse of the mean of the classes' own covariances.
      alpha: `α` without validation images.
      keep_rows: whether all rows are kept, so that classes without images can use them: with a precision of their own,
        or beside classes of training with `P`. Without the rows, other classes are refused.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets = {"gda": Preset("GDA", order=540)}
    kind = Kind.TRAINING_FREE
    trains = False
    scale = COSINE_SCALE
    datasets = {"imagenet": {"templates": "imagenet_select"}}

    covariance: Annotated[str, Choices(("shrunk", "classes"))] = "shrunk"
    alpha: Annotated[float, Range(0, 1e6)] = 0.1
    keep_rows: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        classes = len(class_names)
        width = clip.config.projection_width
        # Shapes alone: `support` makes all of them, of rows whose number is not known yet.
        rows, precision = np.zeros((0, width)), np.zeros((width, width))
        return self._learnables(np.zeros((classes, width)), np.zeros(classes), self.alpha, rows, precision)

    def _learnables(
        self, weight: np.ndarray, bias: np.ndarray, alpha: float, rows: np.ndarray, precision: np.ndarray
    ) -> Learnables:
        arrays = {"weight": weight, "bias": bias, "alpha": np.asarray(alpha)}
        if self.keep_rows:
            arrays |= {"rows": rows, "precision": precision}
        return {CONSTANTS: {name: value.astype(np.float32) for name, value in arrays.items()}}

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        constants = learnables[CONSTANTS]
        # Bayes' rule with one covariance for all classes: the quadratic term in `x` cancels, and a linear map is left.
        densities = unit_length(features.image) @ constants["weight"].T + constants["bias"]
        return self.scale * cosines(features) + constants["alpha"] * densities

    def sampling(self) -> Sampling:
        return Sampling(passes=10, crop=0.5, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        # float64 on the host, a pass at a time: a covariance of few rows is near singular, and α decides by accuracies
        # that one image changes.
        classes = samples.text.shape[1]
        labels = samples.labels
        mean_rows = sum(on_host.unit_passes(samples), np.zeros(samples.features.shape[1:])) / len(samples.features)
        means = on_host.class_means(mean_rows, labels, classes)
        count = len(samples.features) * np.bincount(labels, minlength=classes)
        by_class = self.covariance == "classes"
        # Weights of rows in the covariance: equal ones, or the unbiased covariance of each class, averaged over
        # classes.
        weights = np.ones(len(labels))
        if by_class:
            weights = (1 / (classes * np.maximum(count - 1, 1)))[labels]
        scatter = np.zeros((means.shape[1],) * 2)
        for x in on_host.unit_passes(samples):
            centred = x - means[labels]
            scatter += (centred * weights[:, None]).T @ centred
        if by_class:
            # Fewer rows than dimensions leave directions without variance: eigenvalues below rounding count as zero.
            precision = np.linalg.pinv(scatter, rcond=len(scatter) * np.finfo(np.float64).eps, hermitian=True)
        else:
            precision = shrunk_precision(scatter, count.sum() - 1)
        weight, bias = gaussian(means, precision)
        rows = on_host.unit_rows(samples.features.reshape(-1, means.shape[1]) if self.keep_rows else means[:0])
        return self._learnables(weight, bias, self._search(weight, bias, samples), rows, precision)

    def _search(self, weight: np.ndarray, bias: np.ndarray, samples: Samples) -> float:
        """The smallest of the best α on the validation images, the option if no α classifies any image correctly."""
        alpha = self.alpha
        images = on_host.validation_features(samples)
        if images is None:
            return alpha
        features, labels = images
        x = on_host.unit_rows(features)
        zero_shot = self.scale * x @ on_host.text_classifier(samples.text).T
        densities = x @ weight.T + bias
        best = (0.0, 0.0)
        for candidate in ALPHAS:
            logits = zero_shot + candidate * densities
            # Ties are common among few images: there the lower loss decides, else the smallest α.
            loss = on_host.mean_cross_entropy(logits, labels) if samples.few_validation_images else 0.0
            score = on_host.accuracy(logits, labels), -loss
            if score[0] > 0 and score > best:
                alpha = candidate
                best = score
        return alpha

    def searched_options(self, learnables: Learnables) -> Mapping[str, float]:
        return {"alpha": on_host.shortest(learnables[CONSTANTS]["alpha"])}

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        constants = learnables[CONSTANTS]
        new = labels < 0
        start = dict.fromkeys(("weight", "bias"), np.zeros(()))
        if new.any() and not self.keep_rows:
            raise ClipbiasError(
                "GDA made its classifier from images of each class and cannot be used with other classes; tune it on "
                "them, or set its option keep_rows, which makes other classes from the nearest training images."
            )
        if new.any():
            texts = on_host.text_classifier(target)[new]
            means, precision = from_neighbours(np.asarray(constants["rows"], np.float64), texts)
            if not new.all():
                # Densities of known and new classes are comparable under a shared precision only.
                precision = np.asarray(constants["precision"], np.float64)
            start["weight"], start["bias"] = gaussian(means, precision)
            # `gaussian` used a prior of 1 over the new classes; the known ones have `1/C` of training.
            start["bias"] += np.log(len(means) / (len(means) if new.all() else source.shape[1]))
        rows = {name: on_host.class_rows(constants[name], labels, start[name]) for name in start}
        return {**learnables, CONSTANTS: {**constants, **rows}}


def gaussian(means: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`W [C, d]` and `b [C]` of the class means `[C, d]` and the precision `[d, d]`, all classes equally likely."""
    weight = means @ precision
    # The log density of N(μ_c, P⁻¹) without terms that all classes have.
    return weight, -np.log(len(means)) - 0.5 * (weight * means).sum(-1)


def shrunk_precision(scatter: np.ndarray, degrees: int) -> np.ndarray:
    """`d ((n - 1) S + tr(S) I)⁻¹` of `scatter = (n - 1) S [d, d]`; `degrees` is `n - 1`."""
    width = len(scatter)
    ridge = np.trace(scatter) / degrees
    if not ridge > 0:
        # All rows equal their class's mean: no variance to invert.
        return np.zeros_like(scatter)
    # Through Cholesky's factor, so that the inverse is symmetric and positive definite.
    inverse = np.linalg.inv(np.linalg.cholesky(scatter + ridge * np.eye(width)))
    return width * inverse.T @ inverse


def from_neighbours(rows: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means `[C, d]` and a precision of classes without images, from unit rows `[n, d]` of others and unit texts."""
    # The authors' rule: a class with text `w` has the 64 rows nearest to it. Its mean is that of these and 16 copies of
    # `w`, its covariance is taken around `w`, not around the mean, and the precision is the mean over the classes.
    count = min(NEIGHBOURS, len(rows))
    means = []
    precision = np.zeros((texts.shape[1],) * 2)
    for w in texts:
        nearest = rows[np.argsort(-(rows @ w), kind="stable")[:count]]
        means.append((nearest.sum(0) + COPIES * w) / (count + COPIES))
        centred = nearest - w
        precision += shrunk_precision(centred.T @ centred, count - 1) / len(texts)
    return np.stack(means), precision
