"""Images under every mixture of a model's two runs, in both towers and in each alone, and under levels of values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.factorial import Mixed, corners, effects_in_play, mix_images, mix_texts
from clipbias.explain.levels import MEAN, LevelInputs, donor_images
from clipbias.explain.model import Model
from clipbias.explain.requests import Batch
from clipbias.explain.study import Study
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Learnables


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Which mixtures of two runs there are, and in which towers.

    Attributes:
      effects: in play.
      towers: "both", "vision" and "text", or "both" alone where a model changes one tower.
      streams: names of the mixtures, from the reference to the tuned model.
      levels: by tower, names of further ones, `level_streams`.
    """

    effects: tuple[str, ...]
    towers: tuple[str, ...]
    streams: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def mixtures_of(model: Model) -> Mixtures:
    """The mixtures that a model's two runs have."""
    tuned = model.task.method.adapt(model.learnables)
    effects = effects_in_play(any(model.prompts))
    both = tuned.changes_vision and tuned.changes_text
    return Mixtures(effects, ("both", "vision", "text") if both else ("both",), corners(effects))


def random_prompts(tuned: Adaptation, seed: int) -> Adaptation:
    """The same adaptation with every prompt and context turned to a random direction, its norm kept."""
    changed = {}
    for number, name in enumerate(("text_context", "text_prompts", "vision_prompts")):
        prompts = getattr(tuned, name)
        if prompts is not None:
            drawn = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), prompts.shape)
            norm = jnp.linalg.norm(prompts, axis=-1, keepdims=True)
            changed[name] = drawn * norm / jnp.linalg.norm(drawn, axis=-1, keepdims=True)
    return dataclasses.replace(tuned, **changed)


class MixtureStep:
    """From a batch to "logits" `[B, towers, K, C]` under every mixture, and "vision levels" `[B, K + levels, C]`.

    The latter, and "text levels" likewise, are there where a tower has levels: under its corners, then its levels.

    A class' texts and an image's passes, where there are several, are runs by themselves: the head sees the features of
    all of them under one mixture. Where texts depend on the image, so do both the tuned run and its mixtures.
    """

    def __init__(
        self,
        study: Study,
        model: Model,
        mixtures: Mixtures,
        levels: LevelInputs | None = None,
        *,
        change: Callable[[Adaptation], Adaptation] = lambda tuned: tuned,
    ) -> None:
        """`levels` are what those of the mixtures need; `change` is applied to the tuned adaptation."""
        self._study = study
        self._model = model
        self._task = model.task
        self._mixtures = mixtures
        self._levels = levels
        self._change = change
        self._dtype = model.task.classifier.dtype
        self._learnables = study.learnables[model.key]
        reference = reference_adaptation(self._task, self._task.init(model.seed))
        tuned = change(self._task.method.adapt(self._learnables))
        self._changes_vision = tuned.changes_vision
        self._changes_text = tuned.changes_text
        self._runs = study.replicate((tuned, reference))
        self._mix_texts = jax.jit(self._mixed_texts)
        self._step = jax.jit(self._classify_batch)
        self._texts: jax.Array | None = None
        if not self._changes_text:
            self._texts = self._task.text_features(study.params, self._learnables)[None]
        elif not self._task.method.conditional:
            self._texts = self._all_texts(study.params, self._runs)

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        return self._step(self._study.params, self._learnables, self._runs, self._texts, self._levels, batch)

    def _classify_batch(
        self,
        params: Params,
        learnables: Learnables,
        runs: tuple[Adaptation, Adaptation],
        texts: jax.Array | None,
        levels: LevelInputs | None,
        batch: Batch,
    ) -> dict[str, jax.Array]:
        views = self._study.normalize(batch["images"])
        images = views[:, 0] if self._model.crops else views
        if self._changes_vision:
            donors = None if levels is None else donor_images(levels, batch["numbers"])
            donors = None if donors is None else self._study.normalize(donors)
            features = self._image_features(params, runs[0], images, levels, donors)
        else:
            features = self._task.classifier.encode_images(params, Adaptation(), images)[None]
        if self._task.method.conditional:
            logits = self._conditional_logits(params, learnables, runs[1], features, views)
            return {"logits": jnp.moveaxis(logits, 2, 0)}
        assert texts is not None
        logits = self._logits(params, learnables, features, texts, batch["mask"])
        rows = {"logits": jnp.moveaxis(logits, 2, 0)}
        for tower in self._mixtures.levels:
            of_levels = self._level_logits(tower, params, learnables, features, texts, batch["mask"])
            rows[f"{tower} levels"] = jnp.moveaxis(of_levels, 1, 0)
        return rows

    def _image_features(
        self,
        params: Params,
        tuned: Adaptation,
        images: jax.Array,
        levels: LevelInputs | None,
        donors: jax.Array | None,
    ) -> jax.Array:
        """`[K, B, d]`, or `[K, B, m, d]` of several passes."""
        passes = []
        for number, adaptation in enumerate(by_pass(tuned)):
            constants = {} if levels is None else levels.of_pass(number)
            mixed = mix_images(
                params,
                self._config,
                images,
                adaptation,
                Adaptation(),
                self._mixed("vision"),
                constants,
                donors,
                dtype=self._dtype,
            )
            passes.append(self._every(mixed))
        return passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)

    def _all_texts(self, params: Params, runs: tuple[Adaptation, Adaptation]) -> jax.Array:
        """`[K, S · C, d]`, one of the `S` texts of every class after another."""
        features = []
        for rows in np.split(np.arange(len(self._task.texts)), self._model.texts):
            tokens = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], self._task.tokens)
            features.append(self._mix_texts(params, runs, tokens, rows))
        return jnp.concatenate(features, axis=1)

    def _mixed_texts(
        self, params: Params, runs: tuple[Adaptation, Adaptation], tokens: TextTokens, rows: jax.Array
    ) -> jax.Array:
        tuned, reference = (of_texts(adaptation, rows, len(self._task.texts)) for adaptation in runs)
        levels = self._levels
        constants = {MEAN: levels.text} if levels is not None and levels.text is not None else {}
        names = self._mixed("text")
        mixed = mix_texts(params, self._config, tokens, tuned, reference, names, constants, dtype=self._dtype)
        return self._every(mixed)

    @property
    def _config(self) -> Any:
        return self._study.clip.config

    def _mixed(self, tower: str) -> tuple[str, ...]:
        """All mixtures of a tower but the two runs themselves, the first and the last corner."""
        return self._mixtures.streams[1:-1] + self._mixtures.levels.get(tower, ())

    def _every(self, mixed: Mixed) -> jax.Array:
        """Features of all corners, then of levels."""
        between = len(self._mixtures.streams) - 2
        parts = [mixed.reference[None], mixed.streams[:between], mixed.tuned[None], mixed.streams[between:]]
        return jnp.concatenate(parts)

    def _conditional_logits(
        self,
        params: Params,
        learnables: Learnables,
        reference: Adaptation,
        features: jax.Array,
        views: jax.Array,
    ) -> jax.Array:
        """Of a method whose texts depend on the image, one image after another."""
        task = self._task

        def of_image(image: tuple[jax.Array, jax.Array]) -> jax.Array:
            tuned = self._change(task.classifier.adaptation_for(params, learnables, image[1], task.text))
            texts = self._all_texts(params, (tuned, reference))
            return self._logits(params, learnables, image[0][:, None], texts, None)[:, :, 0]

        seen = task.classifier.encode_images(params, task.method.adapt(learnables), views)
        return jnp.moveaxis(jax.lax.map(of_image, (jnp.moveaxis(features, 1, 0), seen)), 0, 2)

    def _logits(
        self,
        params: Params,
        learnables: Learnables,
        features: jax.Array,
        texts: jax.Array,
        mask: jax.Array | None,
    ) -> jax.Array:
        """`[towers, K, B, C]`."""
        count = len(self._mixtures.streams)
        everywhere = np.arange(count)
        nowhere = np.zeros(count, int)
        places = {"both": (everywhere, everywhere), "vision": (everywhere, nowhere), "text": (nowhere, everywhere)}

        logits = []
        for tower in self._mixtures.towers:
            of_images, of_texts = places[tower]
            logits.append(self._heads(params, learnables, _take(features, of_images), _take(texts, of_texts), mask))
        return jnp.stack(logits)

    def _level_logits(
        self,
        tower: str,
        params: Params,
        learnables: Learnables,
        features: jax.Array,
        texts: jax.Array,
        mask: jax.Array,
    ) -> jax.Array:
        """`[K + levels, B, C]`: texts as tuned while images vary; images of the frozen model while texts vary."""
        every = np.arange(len(self._mixtures.streams) + len(self._mixtures.levels[tower]))
        of_images, of_texts = every, np.full(len(every), len(self._mixtures.streams) - 1)
        if tower == "text":
            of_images, of_texts = np.zeros(len(every), int), every
        return self._heads(params, learnables, _take(features, of_images), _take(texts, of_texts), mask)

    def _heads(
        self,
        params: Params,
        learnables: Learnables,
        features: jax.Array,
        texts: jax.Array,
        mask: jax.Array | None,
    ) -> jax.Array:
        """`[K, B, C]` of features and texts side by side."""

        def head(image: jax.Array, text: jax.Array) -> jax.Array:
            return self._task.classifier.head(params, learnables, image, text, mask)

        return jax.vmap(head)(features, texts)


def _take(features: jax.Array, places: np.ndarray) -> jax.Array:
    """The features of mixtures; a tower that nothing changes has the reference's alone."""
    return features[np.minimum(places, len(features) - 1)]
