"""Linear probe (Radford et al. 2021, arXiv 2103.00020), with the search of its regularisation in CoOp's experiments.

It is chosen on validation images, at most min(K, 4) of each class for K shots. The images are the protocol's picks, not
those that CoOp's program draws for it.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar

import jax
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.closed_form import accuracy, class_means, validation
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.features import Features, Samples, Sampling
from clipbias.tuning.method import Learnables
from clipbias.tuning.preset import Kind, Preset

SWEEP = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
HALVINGS, VALIDATION_SHOTS = 8, 4


@dataclasses.dataclass(frozen=True)
class LinearProbe(FeatureMethod):
    """`f Wᵀ + b` that minimises `½ ‖W‖² + c Σ CE` over the training images, as they are evaluated.

    Features `f` are as the tower makes them, not of unit length; the texts have no part in it. scikit-learn's L-BFGS
    finds the minimum, at its own tolerance.

    Attributes:
      inverse: `c` where there are no validation images; the default is the one in the example of CLIP's authors.
      iterations: the most that L-BFGS does for one `c`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"linear_probe": Preset("Linear probe", order=505)}
    kind: ClassVar[Kind | None] = Kind.HEAD
    trains: ClassVar[bool] = False

    inverse: Annotated[float, Range(1e-12)] = 0.316
    iterations: Annotated[int, Range(1)] = 1000

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        classes = len(class_names)
        weight = np.zeros((classes, clip.config.projection_width), np.float32)
        return {"weight": weight, "bias": np.zeros(classes, np.float32)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        return features.image @ learnables["weight"].T + learnables["bias"]

    def sampling(self) -> Sampling:
        return Sampling(passes=0, validation=True)

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        features, labels = samples.features[0].astype(np.float64), samples.labels
        class_means(features, labels, samples.text.shape[1])  # refuses a class without an image

        @functools.cache
        def fitted(inverse: float) -> tuple[np.ndarray, np.ndarray]:
            return fit(features, labels, inverse, self.iterations)

        chosen, inverse = validation(samples, min(samples.shots, VALIDATION_SHOTS)), self.inverse
        if chosen is not None:
            images, truth = chosen[0].astype(np.float64), chosen[1]

            def score(inverse: float) -> float:
                weight, bias = fitted(inverse)
                return accuracy(images @ weight.T + bias, truth)

            inverse = search(score)
        weight, bias = fitted(inverse)
        return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def fit(features: np.ndarray, labels: np.ndarray, inverse: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """`W [C, d]` and `b [C]` of one `c`, from zeros."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = int(labels.max()) + 1
    if classes == 1:  # nothing to tell apart
        return np.zeros((1, features.shape[1])), np.zeros(1)
    # Of two classes scikit-learn fits the difference v of the rows -v/2 and v/2, whose squares sum to ‖v‖²/2.
    model = LogisticRegression(C=2 * inverse if classes == 2 else inverse, max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the authors stop there, too
        model.fit(features, labels)
    if classes == 2:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate(
            [-model.intercept_, model.intercept_]
        ) / 2
    return model.coef_, model.intercept_


def search(score: Callable[[float], float]) -> float:
    """The `c` that validation chooses: the first best of `SWEEP`, then eight halvings of the decades around it.

    Each compares both ends and keeps the better one, of equal ones the smaller; the other moves to the geometric
    middle. The last end that was kept is the result.
    """
    peak = max(SWEEP, key=score)
    low, high = peak / 10, peak * 10
    kept = peak
    for _ in range(HALVINGS):
        middle = 10 ** ((np.log10(low) + np.log10(high)) / 2)
        if score(low) < score(high):
            kept, low = high, middle
        else:
            kept, high = low, middle
    return float(kept)
