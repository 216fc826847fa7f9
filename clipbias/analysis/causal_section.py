"""The causal test over a dataset: scores of every image in every patched run (`causal`), and their shares of the gain.

Ablations of image tokens keep the tuned texts. Ablations of text tokens keep CLIP's images, and have no resample
ablation, since texts differ in length. All patched runs use the model's own head, so for a method with a head the
reference is the frozen towers under that head.

*Log-likelihood* decides. A temperature changes no prediction, but it would count as a gain. So each way to classify
divides its logits by a temperature of its own, fitted by maximum likelihood (Guo et al. 2017) on one half of the images
and used on the other half. Halves are drawn by a seed and have half of every class. A half in which all predictions are
right has no temperature: its likelihood rises down to the lower bound, where a single mistake in the other half costs
hundreds of nats. It takes the temperature of all images. Resamples keep the temperatures, so intervals leave out their
spread.
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
    Ablation,
    Added,
    PatchedRun,
    PathPatch,
    added_to_images,
    added_to_texts,
    image_kinds,
    mix_images,
    mix_texts,
)
from clipbias.analysis.model import Model, by_pass, of_texts, why_no_causal_test
from clipbias.analysis.results import Ablations, ByMetric, CausalNumbers, same_but_for_seed
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, spread
from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.intervals import Estimate, cross, estimate, resample, shares
from clipbias.training.calibration import COLDEST, fit_temperatures, log_likelihoods
from clipbias.tuning import Learnables


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Scores of `n` images in `K` ways to classify, `[n, K]`."""

    images: np.ndarray  # numbers of the examples in the split, `[n]`
    correct: np.ndarray  # uint8
    log_likelihood: np.ndarray  # of the true class in nats, at the way's temperature, fitted on other images


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """The causal test of one model."""

    ways: tuple[str, ...]  # values of `Way`; `IMAGE_OTHER` comes `DRAWS` times
    outcomes: ImageScores
    why: str  # why no run was patched, or ""
    why_no_ablations: dict[str, str]  # by tower, why what is added there was not measured


@dataclasses.dataclass(frozen=True)
class CausalTests:
    """Causal tests by model key, and their numbers by the keys of a method's models, joined by a space."""

    models: dict[str, CausalTest]
    numbers: dict[str, ByMetric[CausalNumbers]]

    def of(self, keys: tuple[str, ...]) -> ByMetric[CausalNumbers] | None:
        """Returns the numbers of one model, or of all seeds of a method."""
        return self.numbers.get(" ".join(keys))


# Other images for each image: resample ablation is a mean over them.
DRAWS = 3
# Other images are drawn from at most so many training images, since all of them stay in device memory.
_DONORS = 256
_PATHS = [PatchedRun.path(patch) for patch in (PathPatch.PR, PathPatch.RP)]
_IMAGE_ABLATIONS = [
    *(PatchedRun.ablated(each) for each in (Ablation.NOTHING, Ablation.KIND, Ablation.POSITION)),
    *(PatchedRun.ablated(Ablation.RESAMPLE, draw) for draw in range(DRAWS)),
]
_TEXT_ABLATIONS = [PatchedRun.ablated(Ablation.NOTHING), PatchedRun.ablated(Ablation.KIND)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Mean scores of `K` ways to classify the same images, for one model or for all seeds of a method."""

    mean: np.ndarray  # `[K]`
    draws: np.ndarray  # `[RESAMPLES, K]`, the same means in each resample

    def contrast(self, matrix: np.ndarray) -> "Sample":
        """Returns linear combinations of the ways; `matrix [K, Q]`."""
        return Sample(self.mean @ matrix, self.draws @ matrix)


def outcomes(logits: np.ndarray, labels: np.ndarray) -> ByMetric[np.ndarray]:
    """Scores every image, `[n, K]`, by logits `[n, K, C]` and labels `[n]`."""
    labels = np.asarray(labels)
    # In points, so that a mean over images is an accuracy in percent.
    right = 100.0 * (np.asarray(logits).argmax(-1) == labels[:, None])
    return ByMetric(right, at_fitted_temperature(logits, labels)[0])


def sample(values: ByMetric[np.ndarray]) -> ByMetric[Sample]:
    """Averages the scores of `outcomes`, with resamples."""
    return ByMetric(*(Sample(rows.mean(0), resample(rows)) for _, rows in values.items()))


def halves(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Draws the second half, bool `[n]`: half of every class, up to one image."""
    # A stable sort by class keeps the shuffled order within each class, so every second image is a random half of it.
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    second = np.zeros(len(labels), bool)
    second[by_class[1::2]] = True
    return second


def at_fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes log-likelihoods of the true class, each image at the temperature that the other half fitted.

    Takes `logits [n, K, C]` and `labels [n]`. Returns nats `[n, K]`, and the temperatures `[2, K]` of the first and the
    second half.
    """
    labels = np.asarray(labels)
    second = halves(labels)
    # A temperature that was fitted on the images that it scores would flatter the way with the noisier logits.
    temperatures = np.stack([fit_temperatures(logits[part], labels[part]) for part in (~second, second)])
    lowest = temperatures == COLDEST  # all predictions of that half are right
    if lowest.any():
        temperatures = np.where(lowest, fit_temperatures(logits, labels), temperatures)
    # First-half images take the second half's temperature, and the other way round.
    log_scales = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    return log_likelihoods(logits, labels, log_scales[:, :, None])[:, :, 0, 0], temperatures


def over_seeds(measured: Sequence[ByMetric[Sample]]) -> ByMetric[Sample]:
    """Joins models that differ in their seed alone, on the same images, with seeds and images crossed."""

    def crossed(samples: Sequence[Sample]) -> Sample:
        # Every seed has the same draws of images, so a mean over seeds stays paired image by image.
        means = [sample.mean for sample in samples]
        return Sample(np.mean(means, axis=0), cross(means, [sample.draws for sample in samples]))

    return ByMetric(crossed([each.accuracy for each in measured]), crossed([each.log_likelihood for each in measured]))


class Way(enum.Enum):
    """Way to classify: path patching in both towers, one tower tuned alone, or an ablation."""

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
class AblationInputs:
    """Means and other images for the ablations of one model, on devices."""

    image: tuple[dict[Ablation, Added], ...] = ()  # for each pass over an image; empty without image ablations
    text: Added | None = None  # the mean over classes
    donors: jax.Array | None = None  # training images, uint8 `[P, R, R, 3]`
    drawn: jax.Array | None = None  # for each image of the split the numbers of its donors, int32 `[n, DRAWS]`


def compute_causal(study: Study) -> Computation[CausalTests]:
    """Runs the causal test of every model, and joins the seeds of each method."""
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    # Models without patched runs, such as heads, still have their gain: reference and tuned model, nothing between.
    patched = [model for model in study.tuned if not reasons[model.key]]
    # Means come from a first pass over training images, so all models wait for it before the test images are read once.
    inputs = yield from measure_ablations(study, patched)
    requests = {}
    ways = {}
    for model in study.tuned:
        if reasons[model.key]:
            ways[model.key], step = [Way.REFERENCE, Way.TUNED], _two_models(study, model)
        else:
            ways[model.key], step = _all_ways(study, model, inputs[model.key])
        title = f"{model.label}: causal test"
        requests[model.key] = Request(f"causal-{model.key}", title, study.images, step, crops=model.crops)
    rows = yield list(requests.values())
    tests: dict[str, CausalTest] = {}
    measured: dict[str, ByMetric[Sample]] = {}
    for model in study.tuned:
        of_model = rows[requests[model.key].name]
        values = outcomes(of_model["logits"], study.split.labels[of_model["images"]])
        measured[model.key] = sample(values)
        tests[model.key] = CausalTest(
            ways=tuple(way.value for way in ways[model.key]),
            outcomes=ImageScores(
                images=of_model["images"],
                correct=(values.accuracy > 0).astype(np.uint8),
                log_likelihood=values.log_likelihood.astype(np.float32),
            ),
            why=reasons[model.key],
            why_no_ablations={
                tower: reason
                for tower in ([] if reasons[model.key] else changed_towers(model))
                if (reason := why_no_ablations(study, model, tower))
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


def why_no_ablations(study: Study, model: Model, tower: str) -> str:
    """Returns why a tower that a model changes has no ablations, or ""."""
    if tower == "text" and model.task.method.conditional:
        return "Texts depend on the image, so there is no mean over classes to compare them with."
    if tower == "vision" and not study.training:
        return "The mean of what is added to image tokens is measured on training images, and there are none."
    return ""


def measure_ablations(study: Study, models: Sequence[Model]) -> Computation[dict[str, AblationInputs]]:
    """Measures means and draws other images, by model key."""
    config = study.clip.config
    towers = {
        model.key: [tower for tower in changed_towers(model) if not why_no_ablations(study, model, tower)]
        for model in models
    }
    means = {model.key: _mean_request(study, model) for model in models if "vision" in towers[model.key]}
    results: dict[str, Any] = {}
    donors = drawn = None
    if means:
        # Others come from training images, not from the test set: a test image's own addition may not be drawn for
        # itself.
        few = study.training_images[spread(len(study.training_images), _DONORS)]
        title = "training images to compare with"
        donor_request = Request(
            "causal-donors", title, few, lambda batch: {"pixels": batch["images"]}, split=study.training
        )
        results = yield [*means.values(), donor_request]
        pixels = results[donor_request.name]["pixels"]
        # Drawn for the whole split, not for the batch: a study that continues gives each image the same others.
        draw = np.random.default_rng(study.options.seed).integers(0, len(pixels), (len(study.split), DRAWS))
        donors, drawn = study.replicate((pixels, draw.astype(np.int32)))
    inputs = {}
    for model in models:
        text = None
        if "text" in towers[model.key]:
            task = model.task
            # The reference's context is the one that training started from, which the model's seed recreates.
            runs = task.method.adapt(model.learnables), reference_adaptation(task, task.init(model.seed))
            text = study.replicate(Added.mean(added_to_texts(config, study.params, task.tokens, *runs)))
        inputs[model.key] = AblationInputs(text=text)
        if model.key in means:
            sums: list[dict[str, Moments]] = [{} for _ in range(model.passes)]
            for name, moments in results[means[model.key].name].items():
                number, _, part = name.partition("/")
                sums[int(number)][part] = moments
            # A pass over an image has prompts of its own, so each pass has means of its own.
            by_position = [Added.mean(of_pass) for of_pass in sums]
            image = tuple(
                {Ablation.POSITION: mean, Ablation.KIND: mean.by_kind(image_kinds(config))} for mean in by_position
            )
            inputs[model.key] = AblationInputs(study.replicate(image), text, donors, drawn)
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
    """Returns a step to "logits" `[B, 2, C]` of zero-shot and of a model whose runs are not patched."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        views = batch["images"]
        images = views[:, 0] if model.crops else views  # the image itself comes first, its crops behind it
        frozen = study.predictor(study.zero_shot).logits(images, batch["mask"])
        return {"logits": jnp.stack([frozen, study.predictor(model).logits(views, batch["mask"])], axis=1)}

    return step


def _all_ways(study: Study, model: Model, inputs: AblationInputs) -> tuple[list[Way], Step]:
    """Returns the ways to classify, and a step from a batch to their "logits" `[B, K, C]`."""
    # Each text of a class and each pass over an image is patched by itself; the head sees the features of all of them.
    task = model.task
    classifier = task.classifier
    config = study.clip.config
    dtype = classifier.dtype
    learnables = study.learnables[model.key]
    towers = changed_towers(model)
    image_runs = _PATHS + (_IMAGE_ABLATIONS if inputs.image else [])
    text_runs = _PATHS + ([] if inputs.text is None else _TEXT_ABLATIONS)
    text_means = {} if inputs.text is None else {Ablation.KIND: inputs.text}
    # Texts of all runs are computed once for a study, images in every batch: a way only picks rows of both.
    places = _places(towers, bool(inputs.image), inputs.text is not None)
    runs = study.replicate((task.method.adapt(learnables), reference_adaptation(task, task.init(model.seed))))

    def image_features(
        params: Params, tuned: Adaptation, images: jax.Array, inputs: AblationInputs, numbers: jax.Array
    ) -> jax.Array:
        """Features of both runs and of the patched runs, `[S, B, d]`, or `[S, B, m, d]` for `m` passes."""
        donors = None
        if inputs.donors is not None and inputs.drawn is not None:
            # Pixels stay uint8 on the device and are normalised after the gather: a quarter of the memory.
            donors = study.normalize(inputs.donors[jnp.moveaxis(inputs.drawn[numbers], 1, 0)])
        passes = []
        for number, adaptation in enumerate(by_pass(tuned)):
            means = inputs.image[number] if inputs.image else {}
            passes.append(mix_images(params, config, images, adaptation, image_runs, means, donors, dtype=dtype))
        return passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)

    @jax.jit
    def mix(params: Params, runs: tuple[Adaptation, Adaptation], tokens: TextTokens, rows: jax.Array) -> jax.Array:
        tuned, reference = (of_texts(adaptation, rows, len(task.texts)) for adaptation in runs)
        return mix_texts(params, config, tokens, tuned, reference, text_runs, text_means, dtype=dtype)

    def all_texts(params: Params, runs: tuple[Adaptation, Adaptation]) -> jax.Array:
        """Features of both runs and of the patched runs, `[S, T · C, d]`, `T` texts of every class."""
        # One text of every class at a time: all of them at once would hold `T` times the attention.
        features = []
        for rows in np.split(np.arange(len(task.texts)), model.texts):
            tokens = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], task.tokens)
            features.append(mix(params, runs, tokens, rows))
        return jnp.concatenate(features, axis=1)

    def classify(
        params: Params, learnables: Learnables, features: jax.Array, texts: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        # To logits `[K, B, C]`. An unchanged tower has one row of features, the reference's: places are clipped to 0.
        images_at = np.minimum([place for _, place, _ in places], len(features) - 1)
        texts_at = np.minimum([place for _, _, place in places], len(texts) - 1)

        def head(image: jax.Array, text: jax.Array) -> jax.Array:
            return classifier.head(params, learnables, image, text, mask)

        # The head sees one way at a time, as in the model: some heads mix all classes or all images of a call.
        return jax.vmap(head)(features[images_at], texts[texts_at])

    @jax.jit
    def step(
        params: Params,
        learnables: Learnables,
        runs: tuple[Adaptation, Adaptation],
        texts: jax.Array | None,
        inputs: AblationInputs,
        batch: Batch,
    ) -> dict[str, jax.Array]:
        views = study.normalize(batch["images"])
        images = views[:, 0] if model.crops else views
        if "vision" in towers:
            features = image_features(params, runs[0], images, inputs, batch["numbers"])
        else:
            features = classifier.encode_images(params, Adaptation(), images)[None]
        if texts is not None:
            return {"logits": jnp.moveaxis(classify(params, learnables, features, texts, batch["mask"]), 0, 1)}

        # Texts depend on the image: one image at a time, since each has texts of its own for all classes and ways.
        def of_image(image: tuple[jax.Array, jax.Array]) -> jax.Array:
            tuned = classifier.adaptation_for(params, learnables, image[1], task.text)
            return classify(params, learnables, image[0][:, None], all_texts(params, (tuned, runs[1])), None)[:, 0]

        seen = classifier.encode_images(params, task.method.adapt(learnables), views)
        return {"logits": jax.lax.map(of_image, (jnp.moveaxis(features, 1, 0), seen))}

    texts = None  # where they depend on the image
    if not task.method.conditional:
        is_changed = "text" in towers
        texts = all_texts(study.params, runs) if is_changed else task.text_features(study.params, learnables)[None]
    return [way for way, _, _ in places], lambda batch: step(study.params, learnables, runs, texts, inputs, batch)


def _places(towers: Sequence[str], image_ablations: bool, text_ablations: bool) -> list[tuple[Way, int, int]]:
    """Returns each way with the places of its features in the results of `mix_images` and of `mix_texts`."""
    reference, tuned, attention, tokens, first_ablation = range(5)
    places = [
        # Path patching acts in both towers at once, so attention alone and tokens alone divide the whole gain.
        (Way.REFERENCE, reference, reference),
        (Way.ATTENTION, attention, attention),
        (Way.TOKENS, tokens, tokens),
        (Way.TUNED, tuned, tuned),
    ]
    if len(towers) == 2:
        # Each tower alone, only where both are changed: else one of them is the tuned model itself.
        places += [(Way.VISION, tuned, reference), (Way.TEXT, reference, tuned)]
    if image_ablations:
        names = [Way.IMAGE_NOTHING, Way.IMAGE_KIND, Way.IMAGE_POSITION, *DRAWS * [Way.IMAGE_OTHER]]
        places += [(way, first_ablation + number, tuned) for number, way in enumerate(names)]
    if text_ablations:
        places += [(Way.TEXT_NOTHING, reference, first_ablation), (Way.TEXT_KIND, reference, first_ablation + 1)]
    return places


def summarize(measured: ByMetric[Sample], ways: Sequence[str]) -> ByMetric[CausalNumbers]:
    """Divides the gain into its parts, for each metric; `ways` are values of `Way`, equal ones are averaged."""
    # Each number is a contrast: weights `[K]` over the ways. Differences are taken within each resample, so that
    # intervals of parts and shares stay paired.
    unit = np.eye(len(ways))
    mean = {Way(name): np.mean([unit[k] for k, each in enumerate(ways) if each == name], axis=0) for name in ways}
    frozen, tuned = mean[Way.REFERENCE], mean[Way.TUNED]
    of_gain = {"gain": tuned - frozen}
    of_gain |= {way.name: mean[way] - frozen for way in _ALONE if way in mean}
    ablations: dict[str, dict[str, np.ndarray]] = {}  # contrasts of image and of text tokens
    if Way.IMAGE_NOTHING in mean:
        # All ablations, the tuned run included, are against adding nothing at the tuned attention.
        nothing = mean[Way.IMAGE_NOTHING]
        ablations["image"] = {
            "all": tuned - nothing,
            "kind": mean[Way.IMAGE_KIND] - nothing,
            "position": mean[Way.IMAGE_POSITION] - nothing,
            "other": mean[Way.IMAGE_OTHER] - nothing,
            "exchange": tuned - mean[Way.IMAGE_OTHER],
        }
    if Way.TEXT_NOTHING in mean:
        nothing = mean[Way.TEXT_NOTHING]
        # Where the text tower alone is changed, images are CLIP's in the tuned model too.
        ablations["text"] = {"all": mean.get(Way.TEXT, tuned) - nothing, "kind": mean[Way.TEXT_KIND] - nothing}
    of_gain |= {tokens: weights["all"] for tokens, weights in ablations.items()}

    def of_outcome(of_ways: Sample) -> CausalNumbers:
        numbers = _differences(of_ways, of_gain, of="gain")
        added: dict[str, Ablations | None] = dict.fromkeys(("image", "text"))
        for tokens, weights in ablations.items():
            parts: dict[str, Any] = dict.fromkeys(("position", "other", "exchange"))
            parts |= _differences(of_ways, weights, of="all")
            added[tokens] = Ablations(**{**parts, "all": numbers[tokens]})
        reference = of_ways.contrast(frozen[:, None])
        return CausalNumbers(
            reference=estimate(float(reference.mean[0]), reference.draws[:, 0]),
            gain=numbers["gain"],
            attention=numbers.get(Way.ATTENTION.name),
            tokens=numbers.get(Way.TOKENS.name),
            towers={tower: numbers[way.name] for tower, way in _TOWERS.items() if way.name in numbers},
            **added,
        )

    return ByMetric(accuracy=of_outcome(measured.accuracy), log_likelihood=of_outcome(measured.log_likelihood))


def _differences(of_ways: Sample, weights: Mapping[str, np.ndarray], *, of: str) -> dict[str, Estimate]:
    """Estimates contrasts by name, with their shares of the contrast `of`, which itself has no share."""
    contrast = of_ways.contrast(np.stack(list(weights.values()), axis=1))
    place = list(weights).index(of)
    numbers = shares(contrast.mean, contrast.draws, contrast.mean[place], contrast.draws[:, place])
    by_name = dict(zip(weights, numbers, strict=True))
    # A quantity is all of itself: a share of 1 without an interval would only confuse.
    by_name[of] = dataclasses.replace(by_name[of], share=None)
    return by_name
