"""The causal test over a dataset: scores of every image in every patched run (`causal`), and their shares of the gain.

Ablations of image tokens keep the tuned texts. Ablations of text tokens keep CLIP's images, and have no resample
ablation, since texts differ in length. All patched runs use the model's own head, so for a method with a head the
reference is the frozen towers under that head.

The *reading curve* says how much of the image a method reads. What it adds to image tokens is replaced by its mean by
position over ever smaller groups of unlabelled images (`MEANS_OF_GROUPS`). Of the loss under resample ablation, a group
explains what is gone with its mean.

*Log-likelihood* decides, at temperatures that are fitted on other images (`at_fitted_temperature`).
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.cluster.vq import kmeans2

from clipbias.analysis.bias import reference_adaptation
from clipbias.analysis.causal import (
    Ablation,
    Added,
    GroupMeans,
    PatchedRun,
    PathPatch,
    added_to_images,
    added_to_texts,
    mix_images,
    mix_texts,
)
from clipbias.analysis.dataset_sections import compute_predictions, prediction_request
from clipbias.analysis.model import Model, by_pass, of_texts, why_no_causal_test
from clipbias.analysis.results import ByMetric, CausalNumbers, ImageAblations, TextAblations, same_but_for_seed
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, at_numbers, spread
from clipbias.clip import Adaptation, TextTokens
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.intervals import OUTCOMES, Estimate, cross, estimate, resample, shares
from clipbias.training.calibration import COLDEST, fit_temperatures, log_likelihoods
from clipbias.tuning import Learnables


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Scores of `n` images in `K` ways to classify, `[n, K]`."""

    images: np.ndarray  # numbers of the examples in the split, `[n]`
    correct: np.ndarray  # uint8
    log_likelihood: np.ndarray  # of the true class in nats, at the way's temperature, fitted on other images
    zero_shot_right: np.ndarray  # whether zero-shot CLIP predicts the true class, bool `[n]`


@dataclasses.dataclass(frozen=True)
class CausalTest:
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
# Other images are drawn from at most so many, since all of them stay in device memory.
_DONORS = 256
# Clusters are measured while so many images of each are left.
_FEWEST_OF_CLUSTER = 10
# Bytes of the means of all groups; groupings that would exceed them are left out.
MEAN_BYTES = 2**32
# Fewer images than these say nothing apart.
_FEWEST_APART = 20
Pair = tuple[np.ndarray, np.ndarray]  # of the study's images and of unlabelled images, by their numbers in each split
_PATHS = [PatchedRun.path(patch) for patch in (PathPatch.PR, PathPatch.RP)]
_TEXT_ABLATIONS = [PatchedRun.ablated(Ablation.NOTHING), PatchedRun.ablated(Ablation.MEAN)]


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


def sample(values: ByMetric[np.ndarray], among: np.ndarray | None = None) -> ByMetric[Sample]:
    """Averages the scores of `outcomes`, with resamples; over the images `among`, bool `[n]`, alone."""

    def averaged(rows: np.ndarray) -> Sample:
        rows = np.asarray(rows, np.float64)
        kept = np.ones(len(rows)) if among is None else among.astype(np.float64)
        # Resamples are of all images, so that seeds and parts stay paired; how many they hold of `among` varies.
        fraction = np.maximum(resample(kept[:, None]), 1 / len(rows))
        return Sample(kept @ rows / kept.sum(), resample(kept[:, None] * rows) / fraction)

    return ByMetric(*(averaged(rows) for _, rows in values.items()))


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
    # A temperature changes no prediction, but would count as a gain: each way has its own (Guo et al. 2017). Fitted on
    # the images that it scores, it would flatter the way with the noisier logits. Resamples keep it, so intervals leave
    # out its spread.
    temperatures = np.stack([fit_temperatures(logits[part], labels[part]) for part in (~second, second)])
    # Where all predictions of a half are right, its likelihood rises down to the lower bound, at which a single mistake
    # in the other half costs hundreds of nats.
    lowest = temperatures == COLDEST
    if lowest.any():
        temperatures = np.where(lowest, fit_temperatures(logits, labels), temperatures)
    # First-half images take the second half's temperature, and the other way round.
    log_scales = -np.log(np.where(second[:, None], temperatures[0], temperatures[1]))
    return log_likelihoods(logits, labels, log_scales[:, :, None])[:, :, 0, 0], temperatures


class Way(enum.Enum):
    """Way to classify: path patching in both towers, one tower tuned alone, or an ablation."""

    REFERENCE = "reference"
    ATTENTION = "attention alone"
    TOKENS = "tokens alone"
    TUNED = "tuned"
    VISION = "vision tower alone"
    TEXT = "text tower alone"
    IMAGE_NOTHING = "image tokens: nothing"
    IMAGE_MEAN = "image tokens: mean of all images"
    IMAGE_CLASS = "image tokens: mean of zero-shot's class"
    IMAGE_CLUSTERS_2 = "image tokens: mean of 2 clusters per class"
    IMAGE_CLUSTERS_4 = "image tokens: mean of 4 clusters per class"
    IMAGE_CLUSTERS_8 = "image tokens: mean of 8 clusters per class"
    IMAGE_TUNED_CLASS = "image tokens: mean of the tuned class"
    IMAGE_OTHER = "image tokens: another image's"
    TEXT_NOTHING = "text tokens: nothing"
    TEXT_MEAN = "text tokens: mean of all classes"


# Means of groups by their name in results, from large groups to small ones. Zero-shot's class asks nothing of the tuned
# model, and clusters of frozen features are the same for every method. The tuned class is an upper bound: what leads to
# a prediction is given to the images that have it.
MEANS_OF_GROUPS = {
    "all images": Way.IMAGE_MEAN,
    "zero-shot's class": Way.IMAGE_CLASS,
    "2 clusters per class": Way.IMAGE_CLUSTERS_2,
    "4 clusters per class": Way.IMAGE_CLUSTERS_4,
    "8 clusters per class": Way.IMAGE_CLUSTERS_8,
    "the tuned class": Way.IMAGE_TUNED_CLASS,
}
_CLUSTERS = {Way.IMAGE_CLUSTERS_2: 2, Way.IMAGE_CLUSTERS_4: 4, Way.IMAGE_CLUSTERS_8: 8}  # per class
_ALONE = (Way.ATTENTION, Way.TOKENS, Way.VISION, Way.TEXT)
_TOWERS = {"vision": Way.VISION, "text": Way.TEXT}


@struct.dataclass
class AblationInputs:
    """Means and other images for the ablations of one model, on devices."""

    image: tuple[Added, ...] = ()  # means by group for each pass over an image; empty without image ablations
    groups: jax.Array | None = None  # for each image of the split its group in each grouping, int32 `[n, K]`
    text: Added | None = None  # the mean over classes
    donors: jax.Array | None = None  # unlabelled images, uint8 `[P, R, R, 3]`
    drawn: jax.Array | None = None  # for each image of the split the numbers of its donors, int32 `[n, DRAWS]`
    groupings: tuple[Way, ...] = struct.field(pytree_node=False, default=())  # `[K]`


def compute_causal(study: Study) -> Computation[CausalTests]:
    """Runs the causal test of every model, and joins the seeds of each method."""
    reasons = {model.key: why_no_causal_test(model.task) for model in study.tuned}
    # Models without patched runs, such as heads, still have their gain: reference and tuned model, nothing between.
    patched = [model for model in study.tuned if not reasons[model.key]]
    # Groups and means come from passes over unlabelled images, so all models wait for them before the test images are
    # read once for all ways.
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
    zero_shot = (yield from compute_predictions(study)).zero_shot
    tests: dict[str, CausalTest] = {}
    for model in study.tuned:
        of_model = rows[requests[model.key].name]
        labels = study.split.labels[of_model["images"]]
        values = outcomes(of_model["logits"], labels)
        tests[model.key] = CausalTest(
            ways=tuple(way.value for way in ways[model.key]),
            outcomes=ImageScores(
                images=of_model["images"],
                correct=(values.accuracy > 0).astype(np.uint8),
                log_likelihood=values.log_likelihood.astype(np.float32),
                zero_shot_right=zero_shot[of_model["images"]] == labels,
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
    numbers = {" ".join(keys): summarize([tests[key] for key in keys]) for keys in dict.fromkeys(groups)}
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
    if tower == "vision" and not study.unlabelled:
        return "Means of what is added to image tokens are over training and validation images, and there are none."
    return ""


def measure_ablations(study: Study, models: Sequence[Model]) -> Computation[dict[str, AblationInputs]]:
    """Measures means over groups of images and draws other images, by model key."""
    config = study.clip.config
    towers = {
        model.key: [tower for tower in changed_towers(model) if not why_no_ablations(study, model, tower)]
        for model in models
    }
    inputs = {}
    for model in models:
        text = None
        if "text" in towers[model.key]:
            task = model.task
            # The reference's context is the one that training started from, which the model's seed recreates.
            runs = task.method.adapt(model.learnables), reference_adaptation(task, task.init(model.seed))
            text = study.replicate(Added.mean(added_to_texts(config, study.params, task.tokens, *runs)))
        inputs[model.key] = AblationInputs(text=text)
    of_images = [model for model in models if "vision" in towers[model.key]]
    if not of_images:
        return inputs
    # 1. What images are grouped by: frozen features and the predictions of all models, of unlabelled and test images.
    images = spread(len(study.unlabelled or ()), study.options.training_images)
    donors = images[spread(len(images), _DONORS)]
    requests = [
        _features(study, "causal-features", study.images, None),
        _features(study, "causal-unlabelled-features", images, study.unlabelled),
        *(
            prediction_request(study, model, f"causal-predictions-{model.key}", images=images, split=study.unlabelled)
            for model in (study.zero_shot, *of_images)
        ),
        # Others come from unlabelled images, not from the test set: a test image's own addition may not be drawn for
        # itself.
        Request(
            "causal-donors",
            "unlabelled images to compare with",
            donors,
            lambda batch: {"pixels": batch["images"]},
            split=study.unlabelled,
        ),
    ]
    rows = yield requests
    predictions = yield from compute_predictions(study)

    count = len(study.unlabelled or ())
    features = (
        at_numbers(rows["causal-features"], "features", len(study.split), 0),
        at_numbers(rows["causal-unlabelled-features"], "features", count, 0),
    )
    clusters: dict[Way, Pair] = {}
    read = rows["causal-unlabelled-features"]["images"]
    for way, per_class in _CLUSTERS.items():
        number = per_class * len(study.zero_shot.task.class_names)
        if number * _FEWEST_OF_CLUSTER <= len(read):
            clusters[way] = _clusters(number, read, features, seed=study.options.seed)
    pixels = rows["causal-donors"]["pixels"]
    # Drawn for the whole split, not for the batch: a study that continues gives each image the same others.
    drawn = np.random.default_rng(study.options.seed).integers(0, len(pixels), (len(study.split), DRAWS))
    others = study.replicate((pixels, drawn.astype(np.int32)))

    # 2. Means of what each model adds, over the groups.
    def by_prediction(model: Model) -> Pair:
        of_split = np.maximum(predictions.models[model.key], 0)
        return of_split, at_numbers(rows[f"causal-predictions-{model.key}"], "predicted", count, 0)

    groups, members, groupings = {}, {}, {}
    for model in of_images:
        key = model.key
        one = np.zeros(len(study.split), np.int32), np.zeros(count, np.int32)
        every = {Way.IMAGE_MEAN: one, Way.IMAGE_CLASS: by_prediction(study.zero_shot), **clusters}
        every[Way.IMAGE_TUNED_CLASS] = by_prediction(model)
        groupings[key] = _that_fit(study, model, [way for way in MEANS_OF_GROUPS.values() if way in every], every)
        groups[key], members[key] = _numbered([every[way] for way in groupings[key]])
    sums = yield [_mean_request(study, model, images, members[model.key]) for model in of_images]
    for model in of_images:
        key = model.key
        of_pass: list[dict[str, Moments]] = [{} for _ in range(model.passes)]
        for name, moments in sums[f"causal-means-{key}"].items():
            number, _, part = name.partition("/")
            # A group without an unlabelled image has the mean of all, which is group 0.
            empty = (np.asarray(moments.count) == 0)[..., None, None]
            mean = np.where(empty, np.take(moments.mean, [0], axis=-3), moments.mean)
            of_pass[int(number)][part] = Moments(moments.count, mean, None)
        # A pass over an image has prompts of its own, so each pass has means of its own.
        image, of_split = study.replicate((tuple(Added.mean(each) for each in of_pass), groups[key]))
        inputs[key] = AblationInputs(
            image, of_split, inputs[key].text, donors=others[0], drawn=others[1], groupings=groupings[key]
        )
    return inputs


def _features(study: Study, name: str, images: np.ndarray, split: Split | None) -> Request:
    def step(batch: Batch) -> dict[str, jax.Array]:
        return {"features": study.predictor(study.zero_shot).logits_and_features(batch["images"], batch["mask"])[1]}

    return Request(name, "frozen image features", images, step, split=split)


def _clusters(number: int, read: np.ndarray, features: Pair, *, seed: int) -> Pair:
    """Assigns features `[n, d]` to the nearest of `number` centres of k-means, int32 `[n]`.

    Centres are of the unlabelled images (the second list) that could be `read`.
    """
    fitted = features[1][read].astype(np.float64)
    centres, _ = kmeans2(fitted, number, iter=50, minit="++", missing="warn", rng=seed)
    of_split, unlabelled = (
        # Of unit-length features, the nearest centre has the largest `2 f · c − |c|²`.
        np.argmax(2 * rows @ centres.T - np.square(centres).sum(1), axis=1).astype(np.int32)
        for rows in features
    )
    return of_split, unlabelled


def _that_fit(study: Study, model: Model, ways: Sequence[Way], every: Mapping[Way, Pair]) -> tuple[Way, ...]:
    """Returns the first groupings whose means fit into `MEAN_BYTES` together; the mean of all images always does."""
    vision = study.clip.config.vision
    of_group = 4 * 2 * vision.layers * vision.tokens * vision.width * model.passes
    total, kept = 0, []
    for way in ways:
        total += of_group * (1 + max(int(groups.max(initial=0)) for groups in every[way]))
        if total <= MEAN_BYTES or way is Way.IMAGE_MEAN:
            kept.append(way)
    return tuple(kept)


def _numbered(groupings: Sequence[Pair]) -> Pair:
    """Numbers the groups of all groupings `[n]` through: int32 `[n, K]` of the split and of unlabelled images."""
    numbered, first = [], 0
    for pair in groupings:
        numbered.append([groups + first for groups in pair])
        first += 1 + max(int(groups.max(initial=0)) for groups in pair)
    split, unlabelled = (np.stack(each, axis=1).astype(np.int32) for each in zip(*numbered, strict=True))
    return split, unlabelled


def _mean_request(study: Study, model: Model, images: np.ndarray, groups: np.ndarray) -> Request:
    learnables = study.learnables[model.key]
    placed = study.replicate(groups)
    every = np.arange(groups.max(initial=0) + 1)

    def step(batch: Batch) -> dict[str, Any]:
        pixels = study.normalize(batch["images"])
        members = (placed[batch["numbers"]][..., None] == every).any(1) & batch["mask"][:, None].astype(bool)
        return {
            f"{number}/{name}": moments
            for number, adaptation in enumerate(by_pass(model.task.method.adapt(learnables)))
            for name, moments in added_to_images(study.clip.config, study.params, pixels, members, adaptation).items()
        }

    title = f"{model.label}: what it adds on average"
    return Request(f"causal-means-{model.key}", title, images, step, split=study.unlabelled)


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
    image_runs = list(_PATHS)
    if inputs.image:
        image_runs += [PatchedRun.ablated(Ablation.NOTHING)]
        image_runs += [PatchedRun.ablated(Ablation.MEAN, number) for number in range(len(inputs.groupings))]
        image_runs += [PatchedRun.ablated(Ablation.RESAMPLE, draw) for draw in range(DRAWS)]
    text_runs = _PATHS + ([] if inputs.text is None else _TEXT_ABLATIONS)
    # Texts of all runs are computed once for a study, images in every batch: a way only picks rows of both.
    places = _places(towers, inputs.groupings, inputs.text is not None)
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
            means = None if inputs.groups is None else GroupMeans(inputs.image[number], inputs.groups[numbers])
            passes.append(mix_images(params, config, images, adaptation, image_runs, means, donors, dtype=dtype))
        return passes[0] if len(passes) == 1 else jnp.stack(passes, axis=2)

    @jax.jit
    def mix(params: Params, runs: tuple[Adaptation, Adaptation], tokens: TextTokens, rows: jax.Array) -> jax.Array:
        tuned, reference = (of_texts(adaptation, rows, len(task.texts)) for adaptation in runs)
        return mix_texts(params, config, tokens, tuned, reference, text_runs, inputs.text, dtype=dtype)

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


def _places(towers: Sequence[str], groupings: Sequence[Way], text_ablations: bool) -> list[tuple[Way, int, int]]:
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
    if groupings:
        names = [Way.IMAGE_NOTHING, *groupings, *DRAWS * [Way.IMAGE_OTHER]]
        places += [(way, first_ablation + number, tuned) for number, way in enumerate(names)]
    if text_ablations:
        places += [(Way.TEXT_NOTHING, reference, first_ablation), (Way.TEXT_MEAN, reference, first_ablation + 1)]
    return places


def summarize(tests: Sequence[CausalTest]) -> ByMetric[CausalNumbers]:
    """Divides the gain into its parts, for each metric, over all seeds of a method; equal ways are averaged."""
    # Each number is a contrast: weights `[K]` over the ways. Differences are taken within each resample, so that
    # intervals of parts and shares stay paired.
    ways = tests[0].ways
    unit = np.eye(len(ways))
    mean = {Way(name): np.mean([unit[k] for k, each in enumerate(ways) if each == name], axis=0) for name in ways}
    frozen, tuned = mean[Way.REFERENCE], mean[Way.TUNED]
    of_gain = {"gain": tuned - frozen}
    of_gain |= {way.name: mean[way] - frozen for way in _ALONE if way in mean}
    image: dict[str, np.ndarray] = {}
    if Way.IMAGE_NOTHING in mean:
        # All ablations, the tuned run included, are against attention alone, which adds nothing.
        nothing, other = mean[Way.IMAGE_NOTHING], mean[Way.IMAGE_OTHER]
        image = {"all": tuned - nothing, "other": other - nothing, "exchange": tuned - other}
        image |= {name: mean[way] - nothing for name, way in MEANS_OF_GROUPS.items() if way in mean}
    text: dict[str, np.ndarray] = {}
    if Way.TEXT_NOTHING in mean:
        nothing = mean[Way.TEXT_NOTHING]
        # Where the text tower alone is changed, images are CLIP's in the tuned model too.
        text = {"all": mean.get(Way.TEXT, tuned) - nothing, "mean": mean[Way.TEXT_MEAN] - nothing}
    of_gain |= {name: weights["all"] for name, weights in (("image", image), ("text", text)) if weights}

    # Images that zero-shot CLIP gets wrong stand apart, since its class is wrong there.
    def measured(among: str | None) -> ByMetric[Sample] | None:
        samples = []
        for test in tests:
            scores = test.outcomes
            values = ByMetric(100.0 * scores.correct, scores.log_likelihood.astype(np.float64))
            rows = None if among is None else scores.zero_shot_right == (among == "right")
            if rows is not None and rows.sum() < _FEWEST_APART:
                return None
            samples.append(sample(values, rows))
        joined = {}
        for outcome in OUTCOMES:
            # Every seed has the same draws of images, so a mean over seeds stays paired image by image.
            means, draws = [each[outcome].mean for each in samples], [each[outcome].draws for each in samples]
            joined[outcome] = Sample(np.mean(means, axis=0), cross(means, draws))
        return ByMetric(**joined)

    def of_images(of_ways: Sample, all_of_gain: Estimate) -> ImageAblations:
        parts = _differences(of_ways, image, of="all")
        explained = {name: image[name] - image["other"] for name in MEANS_OF_GROUPS if name in image}
        of_exchange = _differences(of_ways, {"exchange": image["exchange"], **explained}, of="exchange")
        return ImageAblations(
            all=all_of_gain,
            other=parts["other"],
            exchange=parts["exchange"],
            means={name: parts[name] for name in explained},
            explained={name: of_exchange[name] for name in explained},
        )

    every = measured(None)
    assert every is not None
    apart = {name: found for name in ("right", "wrong") if image and (found := measured(name)) is not None}

    def of_outcome(outcome: str) -> CausalNumbers:
        of_ways = every[outcome]
        numbers = _differences(of_ways, of_gain, of="gain")
        texts = None
        if text:
            texts = TextAblations(all=numbers["text"], mean=_differences(of_ways, text, of="all")["mean"])
        reference = of_ways.contrast(frozen[:, None])
        return CausalNumbers(
            reference=estimate(float(reference.mean[0]), reference.draws[:, 0]),
            gain=numbers["gain"],
            attention=numbers.get(Way.ATTENTION.name),
            tokens=numbers.get(Way.TOKENS.name),
            towers={tower: numbers[way.name] for tower, way in _TOWERS.items() if way.name in numbers},
            image=of_images(of_ways, numbers["image"]) if image else None,
            text=texts,
            apart={
                name: of_images(found[outcome], _differences(found[outcome], of_gain, of="gain")["image"])
                for name, found in apart.items()
            },
        )

    return ByMetric(accuracy=of_outcome("accuracy"), log_likelihood=of_outcome("log_likelihood"))


def _differences(of_ways: Sample, weights: Mapping[str, np.ndarray], *, of: str) -> dict[str, Estimate]:
    """Estimates contrasts by name, with their shares of the contrast `of`, which itself has no share."""
    contrast = of_ways.contrast(np.stack(list(weights.values()), axis=1))
    place = list(weights).index(of)
    numbers = shares(contrast.mean, contrast.draws, contrast.mean[place], contrast.draws[:, place])
    by_name = dict(zip(weights, numbers, strict=True))
    # A quantity is all of itself: a share of 1 without an interval would only confuse.
    by_name[of] = dataclasses.replace(by_name[of], share=None)
    return by_name
