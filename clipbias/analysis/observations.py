"""The paper's observations (Ma et al., arXiv 2312.11570), each with a number, its interval, and a decision.

**The rule.** A claim has a range for its number: *falls* below 0, *rises* above 0, *most of it* above 50 %, *unchanged*
within 10 %, *identical* within 0.1 %, which leaves room for rounding. It *holds* if the whole 95 % interval lies inside
the range, it *does not* if the whole interval lies outside, else it is *undecided*. Below ten images or classes there
is no interval, so it is undecided. The labels of the verdict (`verdict`) decide the hypotheses of Sec. 4.2.1; its limit
¼ decides the third, that both parts are indispensable.

Intervals are over images (text attention: over classes), with seeds crossed (`intervals`). Changes are tuned less
zero-shot. Attention is a mean over layers and heads. Corrected images are those that zero-shot gets wrong and the tuned
model right.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from clipbias.analysis.attention import eos_shares, layer_maps, vision_totals
from clipbias.analysis.dataset_sections import relevancy_totals
from clipbias.analysis.model import why_no_similarity, why_no_text_attention, why_no_vision_attention
from clipbias.analysis.results import TEXT_TYPES, ModelFacts, StudyResults, What, Where, same_but_for_seed
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import total_variation
from clipbias.analysis.study import Batch, Computation, Request, Study, at_numbers, divide
from clipbias.analysis.verdict import MINOR_SHARE
from clipbias.intervals import Estimate, cross, draw_counts, estimate, excludes, in_points, weigh


class ClaimOutcome(enum.Enum):
    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Observation:
    """Claim of the paper about one method, over all its seeds."""

    source: str  # place in the paper, such as "Fig. 2"
    claim: str
    method: str  # label; "Zero-shot" for a claim about the frozen model
    statistic: str  # name of the number
    unit: str  # "points", "%", or "" for a correlation
    number: Estimate | None  # `None` where nothing was measured
    samples: int  # images or classes of the mean, the fewest over seeds
    outcome: ClaimOutcome


@dataclasses.dataclass(frozen=True)
class ObservedModel:
    """Measurements of one model: float32, a row for each of `n` images or `C` classes; NaN for an unread image."""

    # Of corrected images, NaN for others:
    text_relevancy: np.ndarray | None = None  # `[n, 2, 5]`, shares of zero-shot and of the model by `TEXT_TYPES[:5]`
    patch_variation: np.ndarray | None = None  # `[n]`, total variation between both models' relevancy of patches
    # Of all images:
    eos_attention: np.ndarray | None = None  # `[C, 6]`, by `TEXT_TYPES`, a mean over layers, heads and texts
    # `[n, L]`, among input tokens, renormalised there, a mean over heads:
    distance: np.ndarray | None = None
    entropy: np.ndarray | None = None
    # `[n]`, a mean over layers:
    nearness: np.ndarray | None = None  # rank correlation between attention of `[cls]` and nearness to prompts
    cls_variation: np.ndarray | None = None  # total variation between both models' attention of `[cls]` to patches


@dataclasses.dataclass(frozen=True)
class Observations:
    models: dict[str, ObservedModel]
    rows: tuple[Observation, ...]


FEWEST_SAMPLES = 10
UNCHANGED = 10.0  # percent
IDENTICAL = 0.1
# Learned prompts take the places of frozen words: zero-shot's words are compared with the model's prompts and words.
PLACES = ("prompt", "words")
# Decisions about a hypothesis by the verdict's label. Default: undecided.
_DECIDED: Mapping[object, ClaimOutcome] = {
    Where.ATTENTION: ClaimOutcome.HOLDS,
    Where.NOT_ATTENTION: ClaimOutcome.DOES_NOT,
    Where.OUTSIDE: ClaimOutcome.DOES_NOT,
    What.SAME: ClaimOutcome.HOLDS,
    What.DEPENDS: ClaimOutcome.DOES_NOT,
    What.NOTHING: ClaimOutcome.DOES_NOT,
}


def compute_observations(study: Study) -> Computation[Observations]:
    """Measures every model for the paper's observations; `observe` adds the rows once the verdict is known."""
    relevancy = yield from relevancy_totals(study)
    seen = [
        model
        for model in study.models
        if (model is study.zero_shot or model.prompts[0]) and not why_no_vision_attention(model.task)
    ]
    vision = yield from vision_totals(study, seen)
    maps = yield from _cls_variations(study)
    models = {}

    def of_images(result: Mapping[str, Any], name: str) -> np.ndarray | None:
        return at_numbers(result, name, len(study.split), np.nan) if name in result else None

    for model in study.models:
        of_relevancy = relevancy.get(model.key)
        of_vision = vision.get(model.key, {})
        among_inputs = "attention/without_prompt" if model.prompts[0] else "attention/clip"
        text_relevancy = patch_variation = None
        if of_relevancy:
            corrected = of_relevancy["corrected"]
            sides = [of_relevancy[f"each/text_types/{side}"] for side in ("zero_shot", "tuned")]
            text_relevancy = np.where(corrected[:, None, None], np.stack(sides, axis=1), np.nan)
            patch_variation = np.where(corrected, of_relevancy["each/variation"][:, 0], np.nan)
        nearness = of_images(of_vision, "rank_correlation/layers")
        eos_attention = None
        if not why_no_text_attention(model.task):  # zero-shot has the text of the figures
            texts = eos_shares(study, study.worded if model is study.zero_shot else model)
            # One row per class, over which the bootstrap draws.
            eos_attention = np.mean([shares.mean((0, 2)) for shares in texts], axis=0)
        models[model.key] = ObservedModel(
            text_relevancy=text_relevancy,
            patch_variation=patch_variation,
            eos_attention=eos_attention,
            distance=of_images(of_vision, f"{among_inputs}/distance/layers"),
            entropy=of_images(of_vision, f"{among_inputs}/entropy/layers"),
            nearness=nearness.mean(1) if nearness is not None else None,
            cls_variation=of_images(maps, f"{model.key}/variation"),
        )
    return Observations(models=models, rows=())


def _cls_variations(study: Study) -> Computation[Mapping[str, np.ndarray]]:
    """Computes the total variation of each image's `[cls]` attention from zero-shot's, by model."""
    models, _ = divide(study.tuned, why_no_similarity)
    if not models:
        return {}
    patches = study.clip.config.vision.patches
    compare = jax.jit(lambda x, y: total_variation(x[..., :patches], y[..., :patches]).mean(-1))  # over layers

    def step(batch: Batch) -> dict[str, jax.Array]:
        plain, *tuned = (layer_maps(study, model, batch["images"])["attention"] for model in (study.zero_shot, *models))
        return {f"{model.key}/variation": compare(plain, maps) for model, maps in zip(models, tuned, strict=True)}

    request = Request("cls-variation", "attention of [cls]", study.images, step)
    return (yield [request])[request.name]


def decide(number: Estimate | None, low: float, high: float) -> ClaimOutcome:
    """Decides a claim by the place of the whole interval relative to the range from `low` to `high`."""
    if number is None or number.low is None or number.high is None:
        return ClaimOutcome.UNDECIDED
    # The whole interval, not the estimate: a claim of "unchanged" needs evidence too.
    if low < number.low and number.high < high:
        return ClaimOutcome.HOLDS
    return ClaimOutcome.DOES_NOT if number.high < low or high < number.low else ClaimOutcome.UNDECIDED


def estimate_over(
    samples: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> tuple[Estimate, int]:
    """Estimates a statistic of means over samples; returns it with the fewest samples of a seed.

    `samples [n, q]` of each seed are the same images or classes; rows with NaN do not count. `statistic` maps means
    `[..., q]` to numbers. Seeds with fewer than `FEWEST_SAMPLES` samples have no interval.
    """
    # Seeds correct different images. All draw from the images that any seed has, by the same counts, so that a resample
    # holds the same images for each of them and seeds stay paired.
    there = np.stack([~np.isnan(rows).any(1) for rows in samples])
    fewest = int(there.sum(1).min())
    if not fewest:
        return Estimate(np.nan), 0
    counts = draw_counts(int(there.any(0).sum()), seed=seed)  # of the samples that any seed has
    means, draws = [], []
    for rows, is_there in zip(samples, there, strict=True):
        # A column of counts rides along in the same product, so that each resample's mean has its own denominator.
        values = np.where(is_there[:, None], rows, 0).astype(np.float64)
        sums = weigh(counts, np.column_stack([values, is_there])[there.any(0)])
        mean = statistic(values[is_there].mean(0))
        # A resample without a sample of this seed says nothing about it: the seed's mean stands in.
        is_empty = sums[:, -1] == 0
        drawn = statistic(sums[:, :-1] / np.maximum(sums[:, -1:], 1))
        means.append(mean[None])
        draws.append(np.where(is_empty, mean, drawn)[:, None])
    middle = float(np.mean(means))
    if fewest < FEWEST_SAMPLES:
        return Estimate(middle), fewest
    return estimate(middle, cross(means, draws, seed=seed)[:, 0]), fewest


def columns_of(results: StudyResults, measured: Mapping[str, ObservedModel], key: str) -> dict[str, np.ndarray]:
    """Returns the columns `[n, q]` that claims about a model average, by name; NaN where a sample has none.

    Claims that compare both models have the model's columns in the first half, zero-shot's in the second.
    """
    model, plain = (measured[each] for each in (key, results.zero_shot.key))
    columns: dict[str, np.ndarray] = {}

    def share_of(shares: np.ndarray, *names: str) -> np.ndarray:
        return shares[..., [TEXT_TYPES.index(name) for name in names]].sum(-1)

    if model.text_relevancy is not None:
        for claim, names in (("category", ("category",)), ("sos", ("sos",)), ("prompts", PLACES)):
            before, after = share_of(model.text_relevancy, *names).T
            columns[f"relevancy of {claim}"] = 100 * (after - before)[:, None]
    if model.patch_variation is not None:
        columns["relevancy of patches"] = 100 * model.patch_variation[:, None]
    if model.eos_attention is not None:
        columns["EOS to SOS"] = 100 * share_of(model.eos_attention, "sos")[:, None]
    if model.eos_attention is not None and plain.eos_attention is not None:
        both = [model.eos_attention, plain.eos_attention]
        columns["EOS to prompts"] = 100 * (share_of(both[0], *PLACES) - share_of(both[1], *PLACES))[:, None]
        columns["EOS to category"] = np.stack([share_of(shares, "category") for shares in both], axis=1)
    pairs = {"distance": (model.distance, plain.distance), "entropy": (model.entropy, plain.entropy)}
    for quantity, (tuned, before) in pairs.items():
        if tuned is not None and before is not None:
            columns[quantity] = np.concatenate([tuned, before], axis=1)
    if "distance" in columns and "entropy" in columns:  # in layer 1
        # Layers are the last axis of each model's half, and layer 1 is the first of them.
        sides = [columns[quantity].reshape(len(columns[quantity]), 2, -1)[..., 0] for quantity in pairs]
        columns["layer 1"] = np.stack(sides, axis=-1).reshape(len(sides[0]), -1)
    if model.nearness is not None:
        columns["nearness"] = model.nearness[:, None]
    if model.cls_variation is not None:
        columns["[cls] map"] = 100 * model.cls_variation[:, None]
    return columns


def _relative(means: np.ndarray) -> np.ndarray:
    """Computes the relative change in percent from the second half of the columns, zero-shot's, to the first."""
    # A ratio of means, not a mean of ratios, which a few samples near 0 would decide.
    tuned, plain = np.split(means, 2, axis=-1)
    return 100 * (tuned / plain - 1)


class _Number(NamedTuple):
    unit: str
    range: tuple[float, float]  # in which the claim holds
    tower: str  # "vision" or "text", for methods with prompts there; "" for the frozen model
    columns: str  # name in `columns_of`
    of: Callable[[np.ndarray], np.ndarray] = lambda means: means[..., 0]  # from means `[..., q]` to `[...]`


_FALLS = (-np.inf, 0.0)
_RISES = (0.0, np.inf)
_KEPT = (-np.inf, UNCHANGED)
# Place in the paper, claim, name of the statistic, and number.
_CLAIMS = (
    (
        "Fig. 2",
        "Relevancy of the category falls",
        "change of the class name's share of relevancy, corrected images",
        _Number("points", _FALLS, "text", "relevancy of category"),
    ),
    (
        "Fig. 2",
        "Relevancy of SOS falls",
        "change of SOS's share of relevancy, corrected images",
        _Number("points", _FALLS, "text", "relevancy of sos"),
    ),
    (
        "Fig. 2",
        "Relevancy of prompts rises",
        "change of the share of relevancy on prompts or words in their places, corrected images",
        _Number("points", _RISES, "text", "relevancy of prompts"),
    ),
    (
        "Fig. 3",
        "Patches keep their relative relevancy",
        "part of the patches' relevancy that moves to other patches, corrected images",
        _Number("%", _KEPT, "vision", "relevancy of patches"),
    ),
    ("Fig. 4", "EOS looks at SOS", "SOS's share of EOS's attention", _Number("%", (50.0, np.inf), "", "EOS to SOS")),
    (
        "Fig. 4",
        "EOS's attention moves to prompts",
        "change of the share of prompts or words in their places",
        _Number("points", _RISES, "text", "EOS to prompts"),
    ),
    (
        "Fig. 4",
        "The category keeps its part of EOS's attention",
        "relative change of the class name's share",
        _Number("%", (-UNCHANGED, UNCHANGED), "text", "EOS to category", lambda means: _relative(means)[..., 0]),
    ),
    *(
        (
            "Fig. 5",
            f"Attention {quantity} is unchanged",
            "size of its relative change among input tokens, mean over layers",
            _Number("%", _KEPT, "vision", quantity, lambda means: np.abs(_relative(means)).mean(-1)),
        )
        for quantity in ("distance", "entropy")
    ),
    (
        "Fig. 5",
        "Layer 1 is identical without prompts",
        "larger relative change of both among input tokens",
        _Number("%", (-np.inf, IDENTICAL), "vision", "layer 1", lambda means: np.abs(_relative(means)).max(-1)),
    ),
    (
        "Fig. 6",
        "Prompts resemble background",
        "rank correlation of [cls] attention and nearness to prompts",
        _Number("", _FALLS, "vision", "nearness"),
    ),
    (
        "Fig. 6",
        "The [cls] map is unchanged",
        "part of [cls] attention that moves to other patches",
        _Number("%", _KEPT, "vision", "[cls] map"),
    ),
)


def observe(results: StudyResults, *, seed: int = 0) -> Observations:
    """Adds a row for each claim and each method with the prompts that it is about, all seeds together."""
    # The paper is about prompts: methods without them have no row.
    methods = [models for models in same_but_for_seed(results.tuned) if models[0].has_prompts]
    observed: Observations = results.sections["observations"]
    columns = {
        model.key: columns_of(results, observed.models, model.key) for model in (results.zero_shot, *results.tuned)
    }
    rows = []
    for source, claim, statistic, about in _CLAIMS:
        # A claim about the frozen model has one row, whatever the methods.
        for models in methods if about.tower else [[results.zero_shot]]:
            if about.tower and not getattr(models[0], f"{about.tower}_prompts"):
                continue
            measured = [columns[model.key][about.columns] for model in models if about.columns in columns[model.key]]
            number, samples = None, 0
            # A method is measured only if every seed is: a mean over some of its seeds would not be the method's.
            if len(measured) == len(models):
                number, samples = estimate_over(measured, about.of, seed=seed)
            rows.append(
                Observation(
                    source=source,
                    claim=claim,
                    method=models[0].name if len(models) > 1 else models[0].label,
                    statistic=statistic,
                    unit=about.unit,
                    number=number if samples else None,
                    samples=samples,
                    outcome=decide(number, *about.range),
                )
            )
    rows += [row for models in methods for row in _hypotheses(results, models)]
    return dataclasses.replace(observed, rows=tuple(rows))


def _hypotheses(results: StudyResults, models: Sequence[ModelFacts]) -> list[Observation]:
    # Sec. 4.2.1, in log-likelihood, which decides labels. Accuracy of few images would leave most undecided.
    keys = tuple(model.key for model in models)
    method = next(each for each in results.methods if each.models == keys)
    where, what = (None, None) if method.labels is None else (method.labels.where, method.labels.what)
    attention = tokens = exchange = None
    if method.numbers is not None:
        numbers = method.numbers.log_likelihood
        attention, tokens = (None if each is None else each.share for each in (numbers.attention, numbers.tokens))
        if numbers.image is not None:
            exchange = numbers.image.exchange.share
    rows = [
        (
            "Prompts change where input tokens look",
            "share of the gain that attention alone has",
            attention,
            _DECIDED.get(where, ClaimOutcome.UNDECIDED),
        ),
        (
            "Prompts add a bias, the same for every image",
            "cost of exchanging it between images, of all that is added",
            exchange,
            _DECIDED.get(what, ClaimOutcome.UNDECIDED),
        ),
        (
            "Both are indispensable",
            "share of the gain that is lost without either, the smaller one",
            *_smaller_loss(attention, tokens),
        ),
    ]
    if not models[0].vision_prompts:
        del rows[1]
    return [
        Observation(
            source="Sec. 4.2.1",
            claim=claim,
            method=method.name,
            statistic=statistic,
            unit="%",
            number=None if number is None else in_points(number),
            samples=method.images if number else 0,
            outcome=outcome,
        )
        for claim, statistic, number, outcome in rows
    ]


def _smaller_loss(attention: Estimate | None, tokens: Estimate | None) -> tuple[Estimate | None, ClaimOutcome]:
    """Returns the smaller part of the gain that attention alone or tokens alone lack; both must surely lack ¼."""
    if attention is None or tokens is None:
        return None, ClaimOutcome.UNDECIDED
    # The part that keeps most of the gain loses least without the other.
    kept = max(attention, tokens, key=lambda share: share.value)
    low, high = (None if end is None else 1 - end for end in (kept.high, kept.low))
    loss = Estimate(1 - kept.value, low, high)
    sides = [excludes(share, 1 - MINOR_SHARE) for share in (attention, tokens)]
    if 1 in sides:
        return loss, ClaimOutcome.DOES_NOT
    return loss, ClaimOutcome.HOLDS if sides == [-1, -1] else ClaimOutcome.UNDECIDED


OBSERVATIONS = Section(
    name="observations",
    title="What the paper observes",
    result=Observations,
    compute=compute_observations,
    # Hypotheses are decided by the verdict.
    finish=lambda study, results: observe(results, seed=study.options.seed),
)
