"""The causal test over a dataset: every image under every mixture of the two runs, in both towers and in each alone."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.constants import ZERO_SHOT
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.conclusions import FEWEST_IMAGES
from clipbias.explain.dataset_sections import compute_predictions
from clipbias.explain.effects import Measured, measure, over_seeds, summarize_effects, temperature_alone
from clipbias.explain.endpoint import measure_cell
from clipbias.explain.factorial import Mixed, corners, effects_in_play, mix_images, mix_texts
from clipbias.explain.model import Model
from clipbias.explain.results import (
    CausalTest,
    CausalTests,
    EffectSummary,
    EndpointCell,
    GroupEffects,
    ImageOutcomes,
    Missing,
    Predictions,
    RandomPrompts,
    SeedGroup,
    same_but_for_seed,
)
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.stream import Batch, RowRequest, Section
from clipbias.explain.study import Study, spread
from clipbias.explain.targets import by_pass, of_texts
from clipbias.tuning import Learnables


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Which mixtures of two runs there are, and in which towers.

    Attributes:
      effects: in play.
      towers: "both", "vision" and "text", or "both" alone where a model changes one tower.
      streams: names of the mixtures, from the reference to the tuned model.
    """

    effects: tuple[str, ...]
    towers: tuple[str, ...]
    streams: tuple[str, ...]


def compute_factorial(study: Study) -> Section[CausalTests]:
    """Every image under every mixture, for every model that changes a tower; outcomes, effects and interactions.

    A model with prompts has a control besides: prompts drawn at random, with the trained ones' norms. Features of every
    mixture go through the model's own head, so the reference of a method with one is the frozen towers under that head.
    Models that differ in their seed alone have a summary together, over seeds and images crossed. The confirmatory
    conclusions (`endpoint`) are about all seeds of a method with slots, or about its only model.
    """
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    results: dict[str, CausalTest | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    models = [model for model in study.tuned if not reasons[model.key]]
    mixtures = {model.key: mixtures_of(model) for model in models}
    requests = {model.key: _trained_request(study, model, mixtures[model.key]) for model in models}
    controls = {
        model.key: _random_request(study, model, mixtures[model.key])
        for model in models
        if any(model.prompts) and study.options.control_images
    }
    predictions = yield from compute_predictions(study)
    rows = yield list(requests.values()) + list(controls.values())
    measured: dict[str, dict[str, Measured]] = {}
    for key, request in requests.items():
        mixed = mixtures[key]
        of_model = rows[request.name]
        measured[key] = _measure(study, of_model, mixed)
        control = controls.get(key)
        results[key] = CausalTest(
            effects=mixed.effects,
            towers=mixed.towers,
            streams=mixed.streams,
            outcomes=image_outcomes(of_model["images"], measured[key].values()),
            summary=summarize(measured[key], mixed),
            both_right=_both_right(study, predictions, key, of_model, mixed),
            random=None if control is None else _random_prompts(study, rows[control.name], mixed),
        )
    logits = {key: rows[request.name] for key, request in requests.items()}
    return CausalTests(
        models=results,
        seeds=_over_seeds(models, measured, mixtures),
        cells=_endpoint_cells(study, models, logits, mixtures),
    )


def mixtures_of(model: Model) -> Mixtures:
    """The mixtures that a model's two runs have."""
    tuned = model.task.method.adapt(model.learnables)
    effects = effects_in_play(any(model.prompts))
    both = tuned.changes_vision and tuned.changes_text
    return Mixtures(effects, ("both", "vision", "text") if both else ("both",), corners(effects))


def _trained_request(study: Study, model: Model, mixtures: Mixtures) -> RowRequest:
    title = f"{model.label}: causal test"
    step = _MixtureStep(study, model, mixtures)
    return RowRequest(f"factorial-{model.key}", title, study.images, step, crops=model.crops)


def _random_request(study: Study, model: Model, mixtures: Mixtures) -> RowRequest:
    title = f"{model.label}: causal test of random prompts"
    few = study.images[spread(len(study.images), study.options.control_images)]
    step = _MixtureStep(study, model, mixtures, change=lambda tuned: random_prompts(tuned, study.options.seed))
    return RowRequest(f"factorial-{model.key}-random", title, few, step, crops=model.crops)


def _measure(study: Study, rows: Mapping[str, np.ndarray], mixtures: Mixtures) -> dict[str, Measured]:
    """Outcomes by tower."""
    labels = study.split.labels[rows["images"]]
    return {tower: measure(rows["logits"][:, place], labels) for place, tower in enumerate(mixtures.towers)}


def _both_right(
    study: Study, predictions: Predictions, key: str, rows: Mapping[str, np.ndarray], mixtures: Mixtures
) -> GroupEffects | None:
    """The effects over images that both models get right, whose selection follows from no flipped decision."""
    right = (predictions.right(ZERO_SHOT) & predictions.right(key))[rows["images"]]
    if right.sum() < FEWEST_IMAGES:
        return None
    labels = study.split.labels[rows["images"]][right]
    both = {"both": measure(rows["logits"][right, 0], labels)}
    return GroupEffects(images=int(right.sum()), summary=summarize(both, mixtures))


def _random_prompts(study: Study, rows: Mapping[str, np.ndarray], mixtures: Mixtures) -> RandomPrompts:
    measured = _measure(study, rows, mixtures)
    outcomes = image_outcomes(rows["images"], measured.values())
    return RandomPrompts(outcomes=outcomes, summary=summarize(measured, mixtures))


def image_outcomes(images: np.ndarray, measured: Iterable[Measured]) -> ImageOutcomes:
    """The outcomes of every image, `[n, towers, K]`."""
    towers = [each.outcomes(images) for each in measured]
    return ImageOutcomes(
        images=images,
        correct=np.stack([tower.correct for tower in towers], axis=1),
        calibrated=np.stack([tower.calibrated for tower in towers], axis=1),
        log_likelihood=np.stack([tower.log_likelihood for tower in towers], axis=1),
    )


def summarize(measured: Mapping[str, Measured], mixtures: Mixtures) -> EffectSummary:
    """Effects by tower, and what a temperature alone gives."""
    both = measured["both"]
    return EffectSummary(
        towers={
            tower: summarize_effects(of_tower, mixtures.streams, mixtures.effects)
            for tower, of_tower in measured.items()
        },
        temperature_alone=temperature_alone(both, 0, 2 ** len(mixtures.effects) - 1),
        temperatures=dict(zip(mixtures.streams, both.temperatures.tolist(), strict=True)),
        refitted=both.refitted,
    )


def _over_seeds(
    models: Sequence[Model], measured: Mapping[str, Mapping[str, Measured]], mixtures: Mapping[str, Mixtures]
) -> tuple[SeedGroup[EffectSummary], ...]:
    return tuple(
        SeedGroup(models=keys, summary=summarize(cross_seeds([measured[key] for key in keys]), mixtures[keys[0]]))
        for keys in seeds_of(models)
    )


def _endpoint_cells(
    study: Study,
    models: Sequence[Model],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    mixtures: Mapping[str, Mixtures],
) -> tuple[EndpointCell, ...]:
    """The confirmatory conclusions about each method, in both towers."""
    cells = []
    for group in same_but_for_seed(models):
        keys = [model.key for model in group]
        labels = study.split.labels[rows[keys[0]]["images"]]
        logits = [rows[key]["logits"][:, 0] for key in keys]
        cells.append(measure_cell(keys, logits, labels, mixtures[keys[0]].streams))
    return tuple(cell for cell in cells if cell is not None)


def cross_seeds(measured: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """By tower, over seeds and images crossed."""
    return {tower: over_seeds([of_seed[tower] for of_seed in measured]) for tower in measured[0]}


def seeds_of(models: Sequence[Model]) -> list[tuple[str, ...]]:
    """Keys of models that differ in their seed alone, where there are several."""
    groups = same_but_for_seed(models)
    return [tuple(model.key for model in group) for group in groups if len(group) > 1]


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


class _MixtureStep:
    """From a batch to logits `[B, towers, K, C]` under every mixture.

    A class' texts and an image's passes, where there are several, are runs by themselves: the head sees the features of
    all of them under one mixture. Where texts depend on the image, so do both the tuned run and its mixtures.
    """

    def __init__(
        self,
        study: Study,
        model: Model,
        mixtures: Mixtures,
        *,
        change: Callable[[Adaptation], Adaptation] = lambda tuned: tuned,
    ) -> None:
        """`change` is applied to the tuned adaptation."""
        self._study = study
        self._model = model
        self._task = model.task
        self._mixtures = mixtures
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
        return self._step(self._study.params, self._learnables, self._runs, self._texts, batch)

    def _classify_batch(
        self,
        params: Params,
        learnables: Learnables,
        runs: tuple[Adaptation, Adaptation],
        texts: jax.Array | None,
        batch: Batch,
    ) -> dict[str, jax.Array]:
        views = self._study.normalize(batch["images"])
        images = views[:, 0] if self._model.crops else views
        if self._changes_vision:
            features = self._image_features(params, runs[0], images)
        else:
            features = self._task.classifier.encode_images(params, Adaptation(), images)[None]
        if self._task.method.conditional:
            logits = self._conditional_logits(params, learnables, runs[1], features, views)
        else:
            assert texts is not None
            logits = self._logits(params, learnables, features, texts, batch["mask"])
        return {"logits": jnp.moveaxis(logits, 2, 0)}

    def _image_features(self, params: Params, tuned: Adaptation, images: jax.Array) -> jax.Array:
        """`[K, B, d]`, or `[K, B, m, d]` of several passes."""
        passes = [
            self._every(mix_images(params, self._config, images, each, Adaptation(), self._mixed, dtype=self._dtype))
            for each in by_pass(tuned)
        ]
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
        return self._every(mix_texts(params, self._config, tokens, tuned, reference, self._mixed, dtype=self._dtype))

    @property
    def _config(self) -> Any:
        return self._study.clip.config

    @property
    def _mixed(self) -> tuple[str, ...]:
        """All mixtures but the two runs themselves, the first and the last."""
        return self._mixtures.streams[1:-1]

    @staticmethod
    def _every(mixed: Mixed) -> jax.Array:
        return jnp.concatenate([mixed.reference[None], mixed.streams, mixed.tuned[None]])

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

        def head(image: jax.Array, text: jax.Array) -> jax.Array:
            return self._task.classifier.head(params, learnables, image, text, mask)

        logits = []
        for tower in self._mixtures.towers:
            of_images, of_texts = places[tower]
            logits.append(jax.vmap(head)(_take(features, of_images), _take(texts, of_texts)))
        return jnp.stack(logits)


def _take(features: jax.Array, places: np.ndarray) -> jax.Array:
    """The features of mixtures; a tower that nothing changes has the reference's alone."""
    return features[np.minimum(places, len(features) - 1)]
