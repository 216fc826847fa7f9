"""Levels between nothing and all of what a tuned run adds to tokens: whether it is the same for every image.

All are on the tuned run's own trajectory, so that nothing else changes, and no label is used:

    nothing  the reference's values
    mean     what the tuned run adds on average over training images, layer by layer and kind of token (`added`)
    fitted   the constant of the same shapes that changes its predictions least (`fitted_level`); where it is asked for
    random   what it adds for another image: training images drawn by the seed, one for all layers
    own      what it adds for this image: the tuned run's values

The steps between nothing, mean, random and own, called *constant*, *mismatch* and *image*, add up to values at any
attention and scale, and so do their parts of the Shapley value. Where blocks change, the last level has the tuned
blocks on its own tokens; at the tuned run's attention that is the same. While the image tower's values vary, texts are
as tuned. Of texts, whose lengths differ, there is no level between the mean over classes and their own, and images are
as the frozen model has them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.explain.added import Added, added_to_images, added_to_texts
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.effects import Measured, Sample, measured_shares
from clipbias.explain.factorial import corners
from clipbias.explain.fitted_level import FITTED, fit_constants, fitted_stream
from clipbias.explain.model import Model
from clipbias.explain.requests import Batch, RowRequest, Section, SumRequest
from clipbias.explain.results import ByOutcome, Levels
from clipbias.explain.statistics import Moments, Totals
from clipbias.explain.study import Study, spread
from clipbias.explain.targets import by_pass

MEAN = "M"
# Random images for each image, over whose outcomes the level is averaged.
DRAWS = 3
# As many training images at most are drawn from, which are held in memory.
_DONORS = 256
STEPS = {"vision": ("constant", "mismatch", "image"), "text": ("constant", "class")}


@struct.dataclass
class LevelInputs:
    """What levels need besides the two runs; arrays on devices.

    Attributes:
      vision: the mean of each pass over an image; empty where the vision tower has no levels.
      text: the mean over classes, or `None`.
      fitted: the fitted constant of each pass; empty where none is fitted.
      donors: uint8 `[P, R, R, 3]`, training images, or `None`.
      drawn: int32 `[n, DRAWS]`: which of them each image of the split gets.
    """

    vision: tuple[Added, ...]
    text: Added | None
    fitted: tuple[Added, ...]
    donors: jax.Array | None
    drawn: jax.Array | None

    def of_pass(self, number: int) -> dict[str, Added]:
        """The constants of one pass over an image, by the letters of `level_streams`."""
        constants = {MEAN: self.vision, FITTED: self.fitted}
        return {letter: passes[number] for letter, passes in constants.items() if passes}


def level_streams(effects: Sequence[str], tower: str, *, fitted: bool = False) -> tuple[str, ...]:
    """Names of the mixtures between values from R and from P, at every attention and scale; of images the fitted last.

    The fitted constant is at the tuned run's attention and scale alone.
    """
    letters = (MEAN, *map(str, range(DRAWS))) if tower == "vision" else (MEAN,)
    streams = [corner + letter for corner in corners(effects[:-1]) for letter in letters]
    if fitted and tower == "vision":
        streams.append(fitted_stream(effects))
    return tuple(streams)


def why_no_levels(study: Study, model: Model, tower: str) -> str:
    """Why a tower that a model changes has no levels, or ""."""
    if model.task.method.conditional:
        return "Texts depend on the image, so there is no mean over classes to compare them with."
    if tower == "vision" and not study.training:
        return "The mean of what is added to image tokens is measured on training images, and there are none."
    return ""


def measure_levels(study: Study, models: Mapping[str, tuple[Model, Sequence[str]]]) -> Section[dict[str, LevelInputs]]:
    """What levels need, by key of a model, for the named towers of each."""
    means = {key: _mean_request(study, model) for key, (model, towers) in models.items() if "vision" in towers}
    results: dict[str, Any] = {}
    donors = drawn = None
    if means:
        donor_request = _donor_request(study)
        results = yield [*means.values(), donor_request]
        pixels = results[donor_request.name]["pixels"]
        draw = np.random.default_rng(study.options.seed)
        donors, drawn = study.replicate(
            (pixels, draw.integers(0, len(pixels), (len(study.split), DRAWS)).astype(np.int32))
        )
    inputs = {}
    for key, (model, towers) in models.items():
        text = study.replicate(_text_mean(study, model)) if "text" in towers else None
        inputs[key] = LevelInputs((), text, (), None, None)
        if key in means:
            mean = _means_by_pass(results[means[key].name])
            assert donors is not None, "the mean is of the same training images"
            fitted = fit_constants(study, model, mean, donors) if study.options.level_steps else ()
            vision, fitted = study.replicate((mean, fitted))
            inputs[key] = LevelInputs(vision, text, fitted, donors, drawn)
    return inputs


def _mean_request(study: Study, model: Model) -> SumRequest:
    learnables = study.learnables[model.key]

    def step(batch: Batch) -> dict[str, Any]:
        images = study.normalize(batch["images"])
        totals: dict[str, Any] = {}
        for number, adaptation in enumerate(by_pass(model.task.method.adapt(learnables))):
            sums = added_to_images(study.clip.config, study.params, images, batch["mask"], adaptation)
            totals |= {f"{number}/{name}": moments for name, moments in sums.items()}
        return totals

    title = f"{model.label}: what it adds on average"
    return SumRequest(f"levels-{model.key}", title, study.training_images, step, split=study.training)


def _donor_request(study: Study) -> RowRequest:
    few = study.training_images[spread(len(study.training_images), _DONORS)]
    title = "training images to compare with"
    return RowRequest("level-donors", title, few, lambda batch: {"pixels": batch["images"]}, split=study.training)


def _means_by_pass(totals: Totals) -> tuple[Added, ...]:
    passes: dict[str, dict[str, Moments]] = {}
    for name, moments in totals.items():
        number, _, part = name.partition("/")
        passes.setdefault(number, {})[part] = moments
    return tuple(Added.mean(passes[number]) for number in sorted(passes, key=int))


def _text_mean(study: Study, model: Model) -> Added:
    task = model.task
    reference, tuned = reference_adaptation(task, task.init(model.seed)), task.method.adapt(model.learnables)
    return Added.mean(added_to_texts(study.clip.config, study.params, task.tokens, tuned, reference))


def donor_images(inputs: LevelInputs, numbers: jax.Array) -> jax.Array | None:
    """Raw donors `[DRAWS, B, R, R, 3]` of the images of these numbers `[B]`."""
    if inputs.donors is None or inputs.drawn is None:
        return None
    return inputs.donors[jnp.moveaxis(inputs.drawn[numbers], 1, 0)]


def summarize_levels(
    measured: Measured, effects: Sequence[str], tower: str, levels: Sequence[str]
) -> ByOutcome[Levels]:
    """By outcome, what the steps between levels give, with shares of all that values give.

    Args:
      measured: of the corners, then of `levels`.
      effects: in play.
      tower: whose values vary.
      levels: `level_streams`.
    """
    streams = (*corners(effects), *levels)
    unit = dict(zip(streams, np.eye(len(streams)), strict=True))
    places = corners(effects[:-1])
    by_place = {place: _steps(unit, place, tower) for place in places}
    at_tuned = by_place[places[-1]]
    contrasts = {"all": sum(at_tuned.values(), np.zeros(len(streams))), **at_tuned}
    contrasts["beyond"] = contrasts["all"] - at_tuned["constant"]
    if (fitted := fitted_stream(effects)) in unit:
        contrasts["fitted"] = unit[fitted] - unit[f"{places[-1]}R"]
    for step in STEPS[tower]:
        contrasts[f"shapley {step}"] = sum(
            (_weight(place) * steps[step] for place, steps in by_place.items()), np.zeros(len(streams))
        )
    matrix = np.stack(list(contrasts.values()), axis=1)

    def summarize(sample: Sample) -> Levels:
        numbers = measured_shares(sample.contrast(matrix), list(contrasts), of="all")
        return Levels(
            all=numbers["all"],
            steps={step: numbers[step] for step in STEPS[tower]},
            beyond=numbers["beyond"],
            fitted=numbers.get("fitted"),
            shapley={step: dataclasses.replace(numbers[f"shapley {step}"], share=None) for step in STEPS[tower]},
        )

    samples = measured.samples
    return ByOutcome(accuracy=summarize(samples["accuracy"]), calibrated=summarize(samples["calibrated"]))


def _steps(unit: Mapping[str, np.ndarray], place: str, tower: str) -> dict[str, np.ndarray]:
    """Weights of the steps at an attention and scale."""
    levels = [unit[f"{place}R"], unit[f"{place}{MEAN}"]]
    if tower == "vision":
        levels.append(np.mean([unit[f"{place}{number}"] for number in range(DRAWS)], axis=0))
    levels.append(unit[f"{place}P"])
    return dict(zip(STEPS[tower], np.diff(levels, axis=0), strict=True))


def _weight(place: str) -> float:
    """How often values come last of those that are P's, among all orders of adding effects."""
    before = place.count("P")
    return math.factorial(before) * math.factorial(len(place) - before) / math.factorial(len(place) + 1)
