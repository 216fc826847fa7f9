"""Linear probe (Radford et al. 2021, arXiv 2103.00020), with the search of its regularisation in CoOp's experiments.

The search uses validation images, at most min(K, 4) of each class for K shots.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning import on_host
from clipbias.tuning.features import Features, Samples, Sampling
from clipbias.tuning.method import FeatureMethod, Kind, Learnables, Preset

SWEEP = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
HALVINGS = 8
VALIDATION_SHOTS = 4


@dataclasses.dataclass(frozen=True)
class LinearProbe(FeatureMethod):
    """`f Wᵀ + b` that minimises `½ ‖W‖² + c Σ CE` over the training images, as they are evaluated.

    Features `f` are not normalised, and texts are not used.

    Attributes:
      inverse: `c` without validation images; the default is from the example of CLIP's authors.
      iterations: maximum number of L-BFGS iterations for one `c`.
    """

    presets = {"linear_probe": Preset("Linear probe", order=505)}
    kind = Kind.HEAD
    trains = False

    inverse: Annotated[float, Range(1e-12)] = 0.316
    iterations: Annotated[int, Range(1)] = 1000

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        classes = len(class_names)
        weight = np.zeros((classes, clip.config.projection_width), np.float32)
        return {"weight": weight, "bias": np.zeros(classes, np.float32)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        # Raw features, as in the example of CLIP's authors: their length counts.
        return features.image @ learnables["weight"].T + learnables["bias"]

    def sampling(self) -> Sampling:
        return Sampling(passes=0, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        # scikit-learn computes in the type that it is given, and L-BFGS needs the digits to converge.
        features = samples.features[0].astype(np.float64)
        labels = samples.labels
        # Called for its error: scikit-learn would drop a class without an image, and shift the labels behind it.
        on_host.class_means(features, labels, samples.text.shape[1])

        # The halvings of the search ask for the same ends again.
        @functools.cache
        def fitted(inverse: float) -> tuple[np.ndarray, np.ndarray]:
            return fit(features, labels, inverse, self.iterations)

        inverse = self.inverse
        if (validation := on_host.validation_features(samples, min(samples.shots, VALIDATION_SHOTS))) is not None:
            validation_images, validation_labels = validation[0].astype(np.float64), validation[1]

            def score(inverse: float) -> float:
                weight, bias = fitted(inverse)
                return on_host.accuracy(validation_images @ weight.T + bias, validation_labels)

            inverse = search(score)
        weight, bias = fitted(inverse)
        return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def fit(features: np.ndarray, labels: np.ndarray, inverse: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """`W [C, d]` and `b [C]` of one `c`, from zeros."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = int(labels.max()) + 1
    if classes == 1:  # scikit-learn refuses a single class
        return np.zeros((1, features.shape[1])), np.zeros(1)
    # scikit-learn fits two classes as one vector v with the penalty ½ ‖v‖². The multinomial rows are -v/2 and v/2, with
    # ½ ‖W‖² = ¼ ‖v‖²: twice the c gives the same minimum.
    model = LogisticRegression(C=2 * inverse if classes == 2 else inverse, max_iter=iterations)
    with warnings.catch_warnings():
        # The authors' code stops at the same number of iterations and ignores the warning.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    weight = model.coef_
    bias = model.intercept_
    if classes == 2:
        weight = np.concatenate([-weight, weight]) / 2
        bias = np.concatenate([-bias, bias]) / 2
    return weight, bias


def search(score: Callable[[float], float]) -> float:
    """Selects `c` on validation images: the first best of `SWEEP`, then eight halvings of the decades around it."""
    # As in CoOp's code: a halving keeps the better end, the smaller of equal ones, and moves the other to the geometric
    # middle. The last end that was kept is the result, not the best of all that were tried.
    best = max(SWEEP, key=score)
    low = best / 10
    high = best * 10
    for _ in range(HALVINGS):
        middle = 10 ** ((np.log10(low) + np.log10(high)) / 2)
        if score(low) < score(high):
            best = high
            low = middle
        else:
            best = low
            high = middle
    return float(best)
