"""The causal test over a dataset: every image under every mixture of the two runs, in both towers and in each alone."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clipbias.constants import ZERO_SHOT
from clipbias.explain.conclusions import FEWEST_IMAGES
from clipbias.explain.dataset_sections import compute_predictions
from clipbias.explain.effects import Measured, measure, over_seeds, summarize_effects, temperature_alone
from clipbias.explain.endpoint import measure_cell
from clipbias.explain.levels import MEAN, LevelInputs, level_streams, measure_levels, summarize_levels, why_no_levels
from clipbias.explain.mixtures import Mixtures, MixtureStep, mixtures_of, random_prompts
from clipbias.explain.model import Model
from clipbias.explain.requests import RowRequest, Section
from clipbias.explain.results import (
    CausalTest,
    CausalTests,
    EffectSummary,
    EndpointCell,
    GroupEffects,
    ImageOutcomes,
    LevelOutcomes,
    Missing,
    Predictions,
    RandomPrompts,
    SeedGroup,
    same_but_for_seed,
)
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.study import Study, spread


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
    mixtures = {model.key: _with_levels(study, model) for model in models}
    towers = {model.key: (model, tuple(mixtures[model.key].levels)) for model in models}
    levels = yield from measure_levels(study, towers)
    requests = {model.key: _trained_request(study, model, mixtures[model.key], levels[model.key]) for model in models}
    controls = {
        model.key: _random_request(study, model, mixtures[model.key])
        for model in models
        if any(model.prompts) and study.options.control_images
    }
    rows = yield list(requests.values()) + list(controls.values())
    predictions = yield from compute_predictions(study)
    measured: dict[str, dict[str, Measured]] = {}
    measured_levels: dict[str, dict[str, Measured]] = {}
    by_key = {model.key: model for model in models}
    for key, request in requests.items():
        mixed = mixtures[key]
        of_model = rows[request.name]
        measured[key] = _measure(study, of_model, mixed)
        measured_levels[key] = _measure_levels(study, of_model, mixed)
        control = controls.get(key)
        results[key] = CausalTest(
            effects=mixed.effects,
            towers=mixed.towers,
            streams=mixed.streams,
            outcomes=image_outcomes(of_model["images"], measured[key].values()),
            summary=summarize(measured[key], mixed, measured_levels[key]),
            levels=_level_outcomes(study, by_key[key], of_model["images"], measured_levels[key], mixed),
            both_right=_both_right(study, predictions, key, of_model, mixed),
            random=None if control is None else _random_prompts(study, rows[control.name], mixed),
        )
    logits = {key: rows[request.name] for key, request in requests.items()}
    return CausalTests(
        models=results,
        seeds=_over_seeds(models, measured, measured_levels, mixtures),
        cells=_endpoint_cells(study, models, logits, mixtures),
    )


def _with_levels(study: Study, model: Model) -> Mixtures:
    """A model's mixtures, with levels of the towers that have them."""
    mixtures = mixtures_of(model)
    towers = [tower for tower in _changed_towers(model) if not why_no_levels(study, model, tower)]
    fitted = study.options.level_steps > 0
    levels = {tower: level_streams(mixtures.effects, tower, fitted=fitted) for tower in towers}
    return dataclasses.replace(mixtures, levels=levels)


def _changed_towers(model: Model) -> list[str]:
    tuned = model.task.method.adapt(model.learnables)
    changes = {"vision": tuned.changes_vision, "text": tuned.changes_text}
    return [tower for tower, is_changed in changes.items() if is_changed]


def _trained_request(study: Study, model: Model, mixtures: Mixtures, levels: LevelInputs) -> RowRequest:
    title = f"{model.label}: causal test"
    step = MixtureStep(study, model, mixtures, levels)
    return RowRequest(f"factorial-{model.key}", title, study.images, step, crops=model.crops)


def _random_request(study: Study, model: Model, mixtures: Mixtures) -> RowRequest:
    title = f"{model.label}: causal test of random prompts"
    few = study.images[spread(len(study.images), study.options.control_images)]
    mixtures = dataclasses.replace(mixtures, levels={})
    step = MixtureStep(study, model, mixtures, change=lambda tuned: random_prompts(tuned, study.options.seed))
    return RowRequest(f"factorial-{model.key}-random", title, few, step, crops=model.crops)


def _measure(study: Study, rows: Mapping[str, np.ndarray], mixtures: Mixtures) -> dict[str, Measured]:
    """Outcomes by tower."""
    labels = study.split.labels[rows["images"]]
    return {tower: measure(rows["logits"][:, place], labels) for place, tower in enumerate(mixtures.towers)}


def _measure_levels(study: Study, rows: Mapping[str, np.ndarray], mixtures: Mixtures) -> dict[str, Measured]:
    """Outcomes of corners and levels, by the tower that has levels."""
    labels = study.split.labels[rows["images"]]
    return {tower: measure(rows[f"{tower} levels"], labels) for tower in mixtures.levels}


def _level_outcomes(
    study: Study, model: Model, images: np.ndarray, measured: Mapping[str, Measured], mixtures: Mixtures
) -> dict[str, LevelOutcomes | Missing]:
    """By tower that the model changes."""
    outcomes: dict[str, LevelOutcomes | Missing] = {}
    for tower in _changed_towers(model):
        if tower in measured:
            streams = (*mixtures.streams, *mixtures.levels[tower])
            outcomes[tower] = LevelOutcomes(streams, measured[tower].outcomes(images))
        else:
            outcomes[tower] = Missing(why_no_levels(study, model, tower))
    return outcomes


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


def summarize(
    measured: Mapping[str, Measured], mixtures: Mixtures, levels: Mapping[str, Measured] | None = None
) -> EffectSummary:
    """Effects by tower, what a temperature alone gives, and what the steps between levels give, where there are any."""
    both = measured["both"]
    return EffectSummary(
        towers={
            tower: summarize_effects(of_tower, mixtures.streams, mixtures.effects)
            for tower, of_tower in measured.items()
        },
        temperature_alone=temperature_alone(both, 0, 2 ** len(mixtures.effects) - 1),
        temperatures=dict(zip(mixtures.streams, both.temperatures.tolist(), strict=True)),
        refitted=both.refitted,
        levels={
            tower: summarize_levels(each, mixtures.effects, tower, mixtures.levels[tower])
            for tower, each in (levels or {}).items()
        },
    )


def _over_seeds(
    models: Sequence[Model],
    measured: Mapping[str, Mapping[str, Measured]],
    levels: Mapping[str, Mapping[str, Measured]],
    mixtures: Mapping[str, Mixtures],
) -> tuple[SeedGroup[EffectSummary], ...]:
    groups = []
    for keys in seeds_of(models):
        crossed, crossed_levels = (cross_seeds([each[key] for key in keys]) for each in (measured, levels))
        groups.append(SeedGroup(models=keys, summary=summarize(crossed, mixtures[keys[0]], crossed_levels)))
    return tuple(groups)


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
        pairs = [_with_mean_level(rows[key], mixtures[key]) for key in keys]
        streams = pairs[0][0]  # the same of all seeds
        cells.append(measure_cell(keys, [logits for _, logits in pairs], labels, streams))
    return tuple(cell for cell in cells if cell is not None)


def _with_mean_level(rows: Mapping[str, np.ndarray], mixtures: Mixtures) -> tuple[tuple[str, ...], np.ndarray]:
    """The corners in both towers, then nothing and the mean in place of what is added to images; logits `[n, K, C]`."""
    logits = rows["logits"][:, 0]
    if "vision" not in mixtures.levels:
        return mixtures.streams, logits
    names = [*mixtures.streams, *mixtures.levels["vision"]]
    tuned = mixtures.streams[-1][:-1]
    places = [names.index(f"{tuned}{level}") for level in ("R", MEAN)]
    together = np.concatenate([logits, rows["vision levels"][:, places]], axis=1)
    return (*mixtures.streams, "nothing", "mean"), together


def cross_seeds(measured: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """By tower, over seeds and images crossed."""
    return {tower: over_seeds([of_seed[tower] for of_seed in measured]) for tower in measured[0]}


def seeds_of(models: Sequence[Model]) -> list[tuple[str, ...]]:
    """Keys of models that differ in their seed alone, where there are several."""
    groups = same_but_for_seed(models)
    return [tuple(model.key for model in group) for group in groups if len(group) > 1]
