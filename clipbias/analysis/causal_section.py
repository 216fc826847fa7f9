"""The causal test over a dataset: every image under every corner and level (`causal`), and what these give of the gain.

While what is added to images varies, texts are as tuned. While what is added to texts varies, images are CLIP's; there
is no other text's level, since texts differ in length. Features of all streams go through the model's own head, so the
reference of a method with one is the frozen towers under that head.

*Log-likelihood* decides. A temperature moves no decision, but would count as a gain. So the logits of each way to
classify are divided by a temperature of its own, fitted by maximum likelihood (Guo et al. 2017) on one half of the
images and used on the other, and the other way round. Halves are drawn by a seed and have half of every class. A half
that a way gets wholly right has no temperature of its own: its likelihood rises down to the lower bound, where a single
mistake in the other half would cost hundreds of nats. It takes the temperature of all images. Temperatures are fixed in
the resamples, whose intervals do not hold their spread.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.analysis.bias import reference_adaptation
from clipbias.analysis.causal import (
    Added,
    Corner,
    Level,
    Stream,
    added_to_images,
    added_to_texts,
    image_kinds,
    mix_images,
    mix_texts,
)
from clipbias.analysis.model import Model, by_pass, of_texts, why_no_causal_test
from clipbias.analysis.results import ByOutcome, CausalNumbers, Levels, same_but_for_seed
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, spread
from clipbias.analysis.uncertainty import Estimate, cross, estimate, resample, shares
from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.training.calibration import COLDEST, fit_temperatures, log_likelihoods
from clipbias.tuning import Learnables


@dataclasses.dataclass(frozen=True)
class ImageOutcomes:
    """What became of each of `n` images in `K` ways to classify, `[n, K]`."""

    images: np.ndarray  # numbers of the examples in the split, `[n]`
    correct: np.ndarray  # uint8
    # Log-likelihood of the true class in nats, each way's logits divided by a temperature of its own that was fitted on
    # other images.
    log_likelihood: np.ndarray


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model."""

    # Names of the `K` ways to classify, members of `causal_section.Way`; three for three other images.
    ways: tuple[str, ...]
    outcomes: ImageOutcomes  # of each image
    why: str  # why the two runs are not mixed, or ""
    why_no_levels: dict[str, str]  # by tower, why what is added there was not measured


@dataclasses.dataclass(frozen=True)
class CausalTests:
    """The causal test of every model by key, and its numbers by the keys of a method's models, joined by a space."""

    models: dict[str, CausalTest]
    numbers: dict[str, ByOutcome[CausalNumbers]]

    def of(self, keys: tuple[str, ...]) -> ByOutcome[CausalNumbers] | None:
        """The numbers of one model, or of all seeds of a method."""
        return self.numbers.get(" ".join(keys))


# Other images for each image, over whose outcomes the level is averaged.
DRAWS = 3
# As many training images at most are drawn from, which are held in memory.
_DONORS = 256
_CORNERS = [Stream.corner(corner) for corner in (Corner.PR, Corner.RP)]
_IMAGE_LEVELS = [
    *(Stream.at(level) for level in (Level.NOTHING, Level.KIND, Level.POSITION)),
    *(Stream.at(Level.OTHER, draw) for draw in range(DRAWS)),
]
_TEXT_LEVELS = [Stream.at(Level.NOTHING), Stream.at(Level.KIND)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Mean outcomes of `K` ways to classify the same images, of one model or of several that differ in their seed."""

    mean: np.ndarray  # `[K]`
    draws: np.ndarray  # `[RESAMPLES, K]`, the same over resamples

    def contrast(self, matrix: np.ndarray) -> "Sample":
        """Linear combinations `matrix [K, Q]` of them."""
        return Sample(self.mean @ matrix, self.draws @ matrix)


def outcomes(logits: np.ndarray, labels: np.ndarray) -> ByOutcome[np.ndarray]:
    """Of every image `[n, K]` under logits `[n, K, C]`."""
    labels = np.asarray(labels)
    right = 100.0 * (np.asarray(logits).argmax(-1) == labels[:, None])
    return ByOutcome(right, at_fitted_temperature(logits, labels)[0])


def sample(values: ByOutcome[np.ndarray]) -> ByOutcome[Sample]:
    """Means of what `outcomes` returns."""
    return ByOutcome(*(Sample(rows.mean(0), resample(rows)) for _, rows in values.items()))


def halves(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Which images are in the second half, bool `[n]`: half of every class, up to one image, drawn by the seed."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    second = np.zeros(len(labels), bool)
    second[by_class[1::2]] = True
    return second


def at_fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods `[n, K]` of the true class in nats, each image with the temperature of the other half.

    Of `logits [n, K, C]` and `labels [n]`. With them come the temperatures `[2, K]` of the first half and the second.
    """
    labels = np.asarray(labels)
    second = halves(labels)
    temperatures = np.stack([fit_temperatures(logits[part], labels[part]) for part in (~second, second)])
    lowest = temperatures == COLDEST
    if lowest.any():
        temperatures = np.where(lowest, fit_temperatures(logits, labels), temperatures)
    log_scales = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    return log_likelihoods(logits, labels, log_scales[:, :, None])[:, :, 0, 0], temperatures


def over_seeds(measured: Sequence[ByOutcome[Sample]]) -> ByOutcome[Sample]:
    """Models that differ in their seed alone, on the same images: both are resampled, crossed."""

    def crossed(samples: Sequence[Sample]) -> Sample:
        means = [sample.mean for sample in samples]
        return Sample(np.mean(means, axis=0), cross(means, [sample.draws for sample in samples]))

    return ByOutcome(crossed([each.accuracy for each in measured]), crossed([each.log_likelihood for each in measured]))


class Way(enum.Enum):
    """A way to classify: corners in both towers, the tuned model in one tower, or a level of what is added."""

    REFERENCE = "reference"
    ATTENTION = "attention alone"
    TOKENS = "tokens alone"
    TUNED = "tuned"
    VISION = "vision tower alone"
    TEXT = "text tower alone"
    IMAGE_NOTHING = "image tokens: nothing"
    IMAGE_KIND = "image tokens: mean by kind"
    IMAGE_POSITION = "image tokens: mean by position"
    IMAGE_OTHER = "image tokens: another image's"
    TEXT_NOTHING = "text tokens: nothing"
    TEXT_KIND = "text tokens: mean by kind"


_ALONE = (Way.ATTENTION, Way.TOKENS, Way.VISION, Way.TEXT)
_TOWERS = {"vision": Way.VISION, "text": Way.TEXT}


@struct.dataclass
class LevelInputs:
    """What levels need besides the two runs; arrays on devices."""

    # The means of each pass over an image; empty where what is added to images is not measured.
    image: tuple[dict[Level, Added], ...] = ()
    text: Added | None = None  # the mean over classes, or `None`
    donors: jax.Array | None = None  # uint8 `[P, R, R, 3]`, training images, or `None`
    drawn: jax.Array | None = None  # int32 `[n, DRAWS]`: which of them each image of the split gets


def compute_causal(study: Study) -> Computation[CausalTests]:
    """The causal test of every model; seeds of a method also together, over seeds and images crossed."""
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    mixed = [model for model in study.tuned if not reasons[model.key]]
    inputs = yield from measure_levels(study, mixed)
    requests = {}
    ways = {}
    for model in study.tuned:
        if reasons[model.key]:
            ways[model.key], step = [Way.REFERENCE, Way.TUNED], _two_models(study, model)
        else:
            ways[model.key], step = _mixed_runs(study, model, inputs[model.key])
        title = f"{model.label}: causal test"
        requests[model.key] = Request(f"causal-{model.key}", title, study.images, step, crops=model.crops)
    rows = yield list(requests.values())
    tests: dict[str, CausalTest] = {}
    measured: dict[str, ByOutcome[Sample]] = {}
    for model in study.tuned:
        of_model = rows[requests[model.key].name]
        values = outcomes(of_model["logits"], study.split.labels[of_model["images"]])
        measured[model.key] = sample(values)
        tests[model.key] = CausalTest(
            ways=tuple(way.value for way in ways[model.key]),
            outcomes=ImageOutcomes(
                images=of_model["images"],
                correct=(values.accuracy > 0).astype(np.uint8),
                log_likelihood=values.log_likelihood.astype(np.float32),
            ),
            why=reasons[model.key],
            why_no_levels={
                tower: reason
                for tower in ([] if reasons[model.key] else changed_towers(model))
                if (reason := why_no_levels(study, model, tower))
            },
        )
    groups: list[tuple[str, ...]] = [(model.key,) for model in study.tuned]
    groups += [tuple(model.key for model in models) for models in same_but_for_seed(study.tuned)]
    numbers = {
        " ".join(keys): summarize(over_seeds([measured[key] for key in keys]), tests[keys[0]].ways)
        for keys in dict.fromkeys(groups)
    }
    return CausalTests(models=tests, numbers=numbers)


CAUSAL = Section(name="causal", title="All methods", result=CausalTests, compute=compute_causal)


def changed_towers(model: Model) -> list[str]:
    """The towers in which a model differs from the frozen one."""
    tuned = model.task.method.adapt(model.learnables)
    changes = {"vision": tuned.changes_vision, "text": tuned.changes_text}
    return [tower for tower, is_changed in changes.items() if is_changed]


def why_no_levels(study: Study, model: Model, tower: str) -> str:
    """Why what a model adds in a tower that it changes is not divided into levels, or ""."""
    if tower == "text" and model.task.method.conditional:
        return "Texts depend on the image, so there is no mean over classes to compare them with."
    if tower == "vision" and not study.training:
        return "The mean of what is added to image tokens is measured on training images, and there are none."
    return ""


def measure_levels(study: Study, models: Sequence[Model]) -> Computation[dict[str, LevelInputs]]:
    """What levels need, by key of a model."""
    config = study.clip.config
    towers = {
        model.key: [tower for tower in changed_towers(model) if not why_no_levels(study, model, tower)]
        for model in models
    }
    means = {model.key: _mean_request(study, model) for model in models if "vision" in towers[model.key]}
    results: dict[str, Any] = {}
    donors = drawn = None
    if means:
        few = study.training_images[spread(len(study.training_images), _DONORS)]
        title = "training images to compare with"
        donor_request = Request(
            "causal-donors", title, few, lambda batch: {"pixels": batch["images"]}, split=study.training
        )
        results = yield [*means.values(), donor_request]
        pixels = results[donor_request.name]["pixels"]
        draw = np.random.default_rng(study.options.seed).integers(0, len(pixels), (len(study.split), DRAWS))
        donors, drawn = study.replicate((pixels, draw.astype(np.int32)))
    inputs = {}
    for model in models:
        text = None
        if "text" in towers[model.key]:
            task = model.task
            runs = task.method.adapt(model.learnables), reference_adaptation(task, task.init(model.seed))
            text = study.replicate(Added.mean(added_to_texts(config, study.params, task.tokens, *runs)))
        inputs[model.key] = LevelInputs(text=text)
        if model.key in means:
            sums: list[dict[str, Moments]] = [{} for _ in range(model.passes)]
            for name, moments in results[means[model.key].name].items():
                number, _, part = name.partition("/")
                sums[int(number)][part] = moments
            by_position = [Added.mean(of_pass) for of_pass in sums]
            image = tuple({Level.POSITION: mean, Level.KIND: mean.by_kind(image_kinds(config))} for mean in by_position)
            inputs[model.key] = LevelInputs(study.replicate(image), text, donors, drawn)
    return inputs


def _mean_request(study: Study, model: Model) -> Request:
    learnables = study.learnables[model.key]

    def step(batch: Batch) -> dict[str, Any]:
        images = study.normalize(batch["images"])
        return {
            f"{number}/{name}": moments
            for number, adaptation in enumerate(by_pass(model.task.method.adapt(learnables)))
            for name, moments in added_to_images(
                study.clip.config, study.params, images, batch["mask"], adaptation
            ).items()
        }

    title = f"{model.label}: what it adds on average"
    return Request(f"causal-means-{model.key}", title, study.training_images, step, split=study.training)


def _two_models(study: Study, model: Model) -> Step:
    """A step to "logits" `[B, 2, C]` of zero-shot and of a model whose runs are not mixed."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        views = batch["images"]
        images = views[:, 0] if model.crops else views
        frozen = study.predictor(study.zero_shot).logits(images, batch["mask"])
        return {"logits": jnp.stack([frozen, study.predictor(model).logits(views, batch["mask"])], axis=1)}

    return step


def _mixed_runs(study: Study, model: Model, levels: LevelInputs) -> tuple[list[Way], Step]:
    """Ways to classify, and a step from a batch to their "logits" `[B, K, C]`, three for `Way.IMAGE_OTHER`.

    A class's texts and an image's passes, where there are several, are runs by themselves: the head sees the features
    of all of them under one stream. Where texts depend on the image, so do both the tuned run and its streams.
    """
    task = model.task
    classifier = task.classifier
    config = study.clip.config
    dtype = classifier.dtype
    learnables = study.learnables[model.key]
    towers = changed_towers(model)
    image_streams = _CORNERS + (_IMAGE_LEVELS if levels.image else [])
    text_streams = _CORNERS + ([] if levels.text is None else _TEXT_LEVELS)
    text_means = {} if levels.text is None else {Level.KIND: levels.text}
    places = _places(towers, bool(levels.image), levels.text is not None)
    runs = study.replicate((task.method.adapt(learnables), reference_adaptation(task, task.init(model.seed))))

    def image_features(
        params: Params, tuned: Adaptation, images: jax.Array, levels: LevelInputs, numbers: jax.Array
    ) -> jax.Array:
        """`[S, B, d]` of both runs and the streams, or `[S, B, m, d]` of several passes."""
        donors = None
        if levels.donors is not None and levels.drawn is not None:
            donors = study.normalize(levels.donors[jnp.moveaxis(levels.drawn[numbers], 1, 0)])
        passes = []
        for number, adaptation in enumerate(by_pass(tuned)):
            means = levels.image[number] if levels.image else {}
            passes.append(mix_images(params, config, images, adaptation, image_streams, means, donors, dtype=dtype))
        return passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)

    @jax.jit
    def mix(params: Params, runs: tuple[Adaptation, Adaptation], tokens: TextTokens, rows: jax.Array) -> jax.Array:
        tuned, reference = (of_texts(adaptation, rows, len(task.texts)) for adaptation in runs)
        return mix_texts(params, config, tokens, tuned, reference, text_streams, text_means, dtype=dtype)

    def all_texts(params: Params, runs: tuple[Adaptation, Adaptation]) -> jax.Array:
        """`[S, T · C, d]` of both runs and the streams, one of the `T` texts of every class after another."""
        features = []
        for rows in np.split(np.arange(len(task.texts)), model.texts):
            tokens = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], task.tokens)
            features.append(mix(params, runs, tokens, rows))
        return jnp.concatenate(features, axis=1)

    def classify(
        params: Params, learnables: Learnables, features: jax.Array, texts: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        """`[K, B, C]`. A tower that nothing changes has the reference's features alone."""
        images_at = np.minimum([place for _, place, _ in places], len(features) - 1)
        texts_at = np.minimum([place for _, _, place in places], len(texts) - 1)

        def head(image: jax.Array, text: jax.Array) -> jax.Array:
            return classifier.head(params, learnables, image, text, mask)

        return jax.vmap(head)(features[images_at], texts[texts_at])

    @jax.jit
    def step(
        params: Params,
        learnables: Learnables,
        runs: tuple[Adaptation, Adaptation],
        texts: jax.Array | None,
        levels: LevelInputs,
        batch: Batch,
    ) -> dict[str, jax.Array]:
        views = study.normalize(batch["images"])
        images = views[:, 0] if model.crops else views
        if "vision" in towers:
            features = image_features(params, runs[0], images, levels, batch["numbers"])
        else:
            features = classifier.encode_images(params, Adaptation(), images)[None]
        if texts is not None:
            return {"logits": jnp.moveaxis(classify(params, learnables, features, texts, batch["mask"]), 0, 1)}

        def of_image(image: tuple[jax.Array, jax.Array]) -> jax.Array:
            tuned = classifier.adaptation_for(params, learnables, image[1], task.text)
            return classify(params, learnables, image[0][:, None], all_texts(params, (tuned, runs[1])), None)[:, 0]

        seen = classifier.encode_images(params, task.method.adapt(learnables), views)
        return {"logits": jax.lax.map(of_image, (jnp.moveaxis(features, 1, 0), seen))}

    texts = None  # where they depend on the image
    if not task.method.conditional:
        is_changed = "text" in towers
        texts = all_texts(study.params, runs) if is_changed else task.text_features(study.params, learnables)[None]
    return [way for way, _, _ in places], lambda batch: step(study.params, learnables, runs, texts, levels, batch)


def _places(towers: Sequence[str], image_levels: bool, text_levels: bool) -> list[tuple[Way, int, int]]:
    """By way the places of its image and of its text features in what `mix_images` and `mix_texts` return."""
    reference, tuned, attention, tokens, first_level = range(5)
    places = [
        (Way.REFERENCE, reference, reference),
        (Way.ATTENTION, attention, attention),
        (Way.TOKENS, tokens, tokens),
        (Way.TUNED, tuned, tuned),
    ]
    if len(towers) == 2:
        places += [(Way.VISION, tuned, reference), (Way.TEXT, reference, tuned)]
    if image_levels:
        names = [Way.IMAGE_NOTHING, Way.IMAGE_KIND, Way.IMAGE_POSITION, *DRAWS * [Way.IMAGE_OTHER]]
        places += [(way, first_level + number, tuned) for number, way in enumerate(names)]
    if text_levels:
        places += [(Way.TEXT_NOTHING, reference, first_level), (Way.TEXT_KIND, reference, first_level + 1)]
    return places


def summarize(measured: ByOutcome[Sample], ways: Sequence[str]) -> ByOutcome[CausalNumbers]:
    """What the gain is made of, by outcome, of outcomes under `ways`, names of `Way`; equal names are averaged."""
    unit = np.eye(len(ways))
    mean = {Way(name): np.mean([unit[k] for k, each in enumerate(ways) if each == name], axis=0) for name in ways}
    frozen, tuned = mean[Way.REFERENCE], mean[Way.TUNED]
    of_gain = {"gain": tuned - frozen}
    of_gain |= {way.name: mean[way] - frozen for way in _ALONE if way in mean}
    levels: dict[str, dict[str, np.ndarray]] = {}  # of what is added to image and to text tokens
    if Way.IMAGE_NOTHING in mean:
        nothing = mean[Way.IMAGE_NOTHING]
        levels["image"] = {
            "all": tuned - nothing,
            "kind": mean[Way.IMAGE_KIND] - nothing,
            "position": mean[Way.IMAGE_POSITION] - nothing,
            "other": mean[Way.IMAGE_OTHER] - nothing,
            "exchange": tuned - mean[Way.IMAGE_OTHER],
        }
    if Way.TEXT_NOTHING in mean:
        nothing = mean[Way.TEXT_NOTHING]
        # Where the text tower alone is changed, images are CLIP's in the tuned model too.
        levels["text"] = {"all": mean.get(Way.TEXT, tuned) - nothing, "kind": mean[Way.TEXT_KIND] - nothing}
    of_gain |= {tokens: weights["all"] for tokens, weights in levels.items()}

    def of_outcome(of_ways: Sample) -> CausalNumbers:
        numbers = _differences(of_ways, of_gain, of="gain")
        added: dict[str, Levels | None] = dict.fromkeys(("image", "text"))
        for tokens, weights in levels.items():
            parts: dict[str, Any] = dict.fromkeys(("position", "other", "exchange"))
            parts |= _differences(of_ways, weights, of="all")
            added[tokens] = Levels(**{**parts, "all": numbers[tokens]})
        reference = of_ways.contrast(frozen[:, None])
        return CausalNumbers(
            reference=estimate(float(reference.mean[0]), reference.draws[:, 0]),
            gain=numbers["gain"],
            attention=numbers.get(Way.ATTENTION.name),
            tokens=numbers.get(Way.TOKENS.name),
            towers={tower: numbers[way.name] for tower, way in _TOWERS.items() if way.name in numbers},
            **added,
        )

    return ByOutcome(accuracy=of_outcome(measured.accuracy), log_likelihood=of_outcome(measured.log_likelihood))


def _differences(of_ways: Sample, weights: Mapping[str, np.ndarray], *, of: str) -> dict[str, Estimate]:
    """Differences by name with their intervals, and their shares of one of them, which has none itself."""
    contrast = of_ways.contrast(np.stack(list(weights.values()), axis=1))
    place = list(weights).index(of)
    numbers = shares(contrast.mean, contrast.draws, contrast.mean[place], contrast.draws[:, place])
    by_name = dict(zip(weights, numbers, strict=True))
    by_name[of] = dataclasses.replace(by_name[of], share=None)
    return by_name
