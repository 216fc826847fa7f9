"""CLAP (Silva-Rodríguez et al. 2024, arXiv 2312.12730): a linear probe that starts at the texts and is held near them.

It uses no validation images; the last epoch counts. The authors' code keeps `_` in class names; here it becomes a
space, as for all methods.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning import on_host
from clipbias.tuning.features import Features, Samples, Sampling, average_raw_texts, cross_entropy, unit_length
from clipbias.tuning.method import CONSTANTS, FeatureMethod, Learnables, Preset, Terms
from clipbias.tuning.prompts import FrozenTowers
from clipbias.tuning.recipe import AUTHORS, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class CLAP(FrozenTowers, FeatureMethod):
    """`s · unit(f) unit(w)ᵀ` with the loss `CE + (1/C) Σ_c λ_c ‖w_c - t_c‖²`.

    The prototypes `w [C, d]` start at `t`, the mean over templates of the text features before normalisation. `λ_c` is
    the mean probability of class `c` on its training images before training.

    Attributes:
      penalised: whether there is a penalty; without it this is the authors' ZS-LP.
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
      recipe: the "authors'", SGD at 0.1 without decay, 300 epochs in batches of 256; or "common".
    """

    presets = {"clap": Preset("CLAP", order=560), "zs_lp": Preset("ZS-LP", {"penalised": False}, order=561)}
    datasets = {"imagenet": {"templates": "imagenet_select_and_dataset"}}
    authors = Recipe(learning_rate=0.1, epochs=300, batch_size=256, weight_decay=0.0)

    penalised: bool = True
    recipe: RecipeName = AUTHORS

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Shapes alone: `support` makes both from the features of texts and images.
        prototypes = np.zeros((len(class_names), clip.config.projection_width), np.float32)
        return self._learnables(prototypes, np.zeros(len(class_names), np.float32))

    def _learnables(self, prototypes: np.ndarray, penalties: np.ndarray) -> Learnables:
        learnables: dict[str, object] = {"text_prototypes": prototypes}
        if self.penalised:
            learnables[CONSTANTS] = {"penalties": penalties}
        return learnables

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        # Normalised here, not in the learnables: the penalty measures distances of raw prototypes.
        return features.scale * (unit_length(features.image) @ unit_length(learnables["text_prototypes"]).T)

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        # `(1/C) Σ_c λ_c ‖w_c - t_c‖²`: a mean over classes, whatever the batch holds. `t_c` is not normalised, as `w_c`
        # starts there.
        terms = {"cross_entropy": cross_entropy(logits, labels)}
        if self.penalised:
            difference = learnables["text_prototypes"] - average_raw_texts(features.text)
            terms["penalty"] = (learnables[CONSTANTS]["penalties"] * jnp.square(difference).sum(-1)).mean()
        return terms

    def sampling(self) -> Sampling:
        # Twenty augmentations of each image, once: a step runs neither tower. An epoch draws from the rows of all
        # passes, but ends after as many batches as one pass has, as the authors' does.
        return Sampling(passes=20, training="pooled")

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        # `λ_c` is the mean over passes and over the class's images of the zero-shot probability of that class. A pass
        # at a time: all twenty at once would hold `[20, N, C]`.
        start = np.asarray(average_raw_texts(jnp.asarray(samples.text)), np.float64)
        images = np.arange(len(samples.labels))
        classifier = on_host.unit_rows(start).T
        passes = on_host.unit_passes(samples)
        probabilities = [on_host.softmax(samples.scale * x @ classifier)[images, samples.labels] for x in passes]
        penalties = on_host.class_means(np.mean(probabilities, axis=0), samples.labels, len(start))
        return self._learnables(start.astype(np.float32), penalties.astype(np.float32))

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        new = labels < 0
        if new.all():
            raise ClipbiasError(
                f"{type(self).__name__} learned a prototype of each class and cannot be used with other classes alone; "
                "tune it on them."
            )
        # A new class starts at its text with a penalty of 0: no training image says how sure CLIP is of it.
        start = np.asarray(average_raw_texts(jnp.asarray(target)))[new]
        penalties = learnables.get(CONSTANTS, {}).get("penalties", np.zeros(source.shape[1], np.float32))
        prototypes = on_host.class_rows(learnables["text_prototypes"], labels, start)
        return self._learnables(prototypes, on_host.class_rows(penalties, labels))
