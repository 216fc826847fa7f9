"""Measures how often the causal test is wrong: mechanisms planted in tiny random CLIPs, and many studies of them.

    OPENBLAS_NUM_THREADS=1 python -m tools.error_rates --rates=docs/images/error_rates --quick

The design is that of a published study: a method is trained with several seeds, has prompts in every layer of both
towers, and all seeds are tested on the same images. Mixtures are of both towers at once. For each mechanism and
strength (`tools/planted.py`), many seeds and a pool of images are the truth. Each study draws `SEEDS` of these seeds
and `IMAGES` images with replacement and asks for verdicts, as `explain` would, but with fewer resamples. A confirmatory
conclusion is counted by itself, without the correction over several, with which wrong ones are rarer. Writes the rates
as JSON and a figure beside it. Every mechanism and strength that is finished is kept in a file beside them until all
are, so that the program goes on where it was interrupted. More threads of BLAS take more CPU time for the same work.

Limits, set before any result was seen: wrong verdicts at most 5 %; right ones at least 80 % at strength `NAMED`; 95 %
intervals of absolute effects cover the truth in at least 93 %.
"""

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from clipbias.explain.conclusions import (
    ATTENTION,
    EITHER,
    HALF,
    LESS,
    MORE,
    NO_GAIN,
    TOGETHER,
    TOKENS,
    UNDECIDED,
    mean_has,
    through,
)
from clipbias.explain.effects import (
    OUTCOME_NAMES,
    OUTCOMES,
    Measured,
    effect_contrasts,
    measure,
    measured_shares,
    over_seeds,
    summarize_effects,
)
from clipbias.explain.endpoint import CONSTANT, PARTS, TOKENS_ALONE, WRONG, summarize_cell
from clipbias.explain.power import spread
from clipbias.explain.uncertainty import excludes
from clipbias.io import read_json_lines, write_text
from clipbias.sentences import join_words
from tools import planted, planted_pool
from tools.planted import MECHANISMS
from tools.planted_pool import CORNERS, EFFECTS, FORMS, Pool, make_pool

STRENGTHS = (0.3, 0.6, 1.0)
NAMED = 1.0
SEEDS = 5
IMAGES = 560
RESAMPLES = 500
SEED = 1  # Draws towers, prompts, images and studies.
# Verdicts in both outcomes; beside them the two confirmatory conclusions.
SOURCE = "source of the gain"
MEAN = "mean"
# Absolute effects beside Shapley values and interactions, each of a form against another.
EFFECTS_OF_FORMS = {
    "attention alone": ("PRR", "RRR"),
    "tokens, attention frozen": ("RPP", "RRR"),
    "mean added": ("mean", "nothing"),
    "all added": ("PPP", "nothing"),
}
# Mechanisms that add next to nothing to image tokens.
ADDS_NOTHING = ("attention", "scale", "none")
# What a mechanism is called in a sentence, where its name says too little.
CALLED = {"both": "attention and a constant", "kinds": "a constant for [cls]", "together": "scale and values"}
COLOURS = {SOURCE: "#0072B2", MEAN: "#D55E00", TOKENS_ALONE: "#009E73", CONSTANT: "#CC79A7"}
SHOWN = "shown"
NOT_SHOWN = "not shown"
MOST_WRONG = 0.05
LEAST_RIGHT = 0.8
COVERAGE = 0.93

_TO = flags.DEFINE_string("rates", "error_rates", "The files to write, without their endings.")
_QUICK = flags.DEFINE_bool("quick", False, "Few studies of a small pool, to see that all of it runs.")


@dataclasses.dataclass(frozen=True)
class Size:
    """How many studies there are, and the trainings and images that they draw from."""

    studies: int
    trainings: int
    images: int


FULL = Size(studies=360, trainings=24, images=3000)
QUICK = Size(studies=6, trainings=6, images=1000)


def measure_pool(pool: Pool) -> list[Measured]:
    """Outcomes of each training on all images, without resamples."""
    logits, labels = pool
    return [measure(of_seed, labels, refit=False, resamples=1) for of_seed in logits]


def truths(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """By outcome the absolute effects in the whole pool."""
    means = {}
    for outcome in OUTCOMES:
        mean = np.mean([of_seed.samples[outcome].mean for of_seed in measured], axis=0)
        means[outcome] = {name: float(mean @ weights) for name, weights in _contrasts().items()}
    return means


def seed_share(measured: Sequence[Measured]) -> dict[str, float]:
    """By outcome, how much of the variance of a study's gain is that of seeds."""
    shares = {}
    for outcome in OUTCOMES:
        variances = spread(np.stack([of_seed.values[outcome] @ _contrasts()["gain"] for of_seed in measured]))
        shares[outcome] = (variances.seeds or 0.0) / SEEDS / variances.error(IMAGES, SEEDS) ** 2
    return shares


def _contrasts() -> dict[str, np.ndarray]:
    """Weights `[K]` of all forms, by absolute effect."""
    unit = dict(zip(FORMS, np.eye(len(FORMS)), strict=True))
    contrasts = {name: np.pad(x, (0, len(FORMS) - len(CORNERS))) for name, x in effect_contrasts(EFFECTS).items()}
    contrasts |= {name: unit[one] - unit[other] for name, (one, other) in EFFECTS_OF_FORMS.items()}
    for part, (present, absent) in PARTS.items():
        contrasts[part] = unit[present] - unit[absent] - HALF * contrasts["gain"]
    return contrasts


def true_verdicts(truth: Mapping[str, float], mechanism: str) -> dict[str, tuple[str, ...]]:
    """What the verdicts would be if the intervals were points at the truth. Where next to nothing is added, either."""
    mean = _mean(truth)
    means: tuple[str, ...] = (mean, NO_GAIN) if mechanism in ADDS_NOTHING and mean != NO_GAIN else (mean,)
    if mechanism == "none":
        return {SOURCE: (NO_GAIN,), MEAN: means, **dict.fromkeys(PARTS, (NOT_SHOWN,))}
    confirmed = {name: (SHOWN if truth[name] > 0 and truth["gain"] > 0 else NOT_SHOWN,) for name in PARTS}
    return {SOURCE: (_source(truth),), MEAN: means, **confirmed}


def _source(truth: Mapping[str, float]) -> str:
    attention, tokens = _alone(truth)
    if truth["gain"] <= 0:
        return NO_GAIN
    if attention and tokens:
        return EITHER
    return ATTENTION if attention else TOKENS if tokens else TOGETHER


def _alone(truth: Mapping[str, float]) -> tuple[bool, bool]:
    """Whether attention alone, and tokens alone, have more than half of the gain."""
    half = HALF * truth["gain"]
    return truth["attention alone"] > half, truth["tokens, attention frozen"] > half


def _mean(truth: Mapping[str, float]) -> str:
    if truth["all added"] <= 0:
        return NO_GAIN
    return MORE if truth["mean added"] > HALF * truth["all added"] else LESS


def wrong(kind: str, claim: str, truth: Mapping[str, float], mechanism: str) -> bool:
    """Whether a verdict claims what is not so. Claims that are true, but less than could be said, are not wrong."""
    if claim in (UNDECIDED, NO_GAIN, NOT_SHOWN):
        return False
    if kind == MEAN:
        return claim != _mean(truth)
    if mechanism == "none":
        return True
    if claim == SHOWN:
        return truth[kind] <= 0 or truth["gain"] <= 0
    attention, tokens = _alone(truth)
    so = {ATTENTION: attention, TOKENS: tokens, EITHER: attention and tokens, TOGETHER: not (attention or tokens)}
    return truth["gain"] <= 0 or not so[claim]


def study(measured: Measured) -> dict[str, dict[str, Any]]:
    """By outcome: all verdicts, and the interval of every absolute effect."""
    effects = summarize_effects(measured.pick(range(len(CORNERS))), CORNERS, EFFECTS)
    cell = summarize_cell(("method",), measured, FORMS)
    contrasts = {name: weights for name, weights in _contrasts().items() if name in EFFECTS_OF_FORMS}
    results: dict[str, dict[str, Any]] = {}
    for outcome, of_outcome in effects.items():
        sample = measured.samples[outcome].contrast(np.stack([*contrasts.values()], axis=1))
        of_forms = measured_shares(sample, list(contrasts), of="all added")
        numbers = {"gain": of_outcome.gain} | of_outcome.effects | of_outcome.interactions | of_forms
        numbers |= {test.name: test.calibrated if outcome == "calibrated" else test.accuracy for test in cell.tests}
        verdicts = {SOURCE: through(of_outcome), MEAN: mean_has(of_forms["mean added"], of_forms["all added"])}
        if outcome == "calibrated":
            for test in cell.tests:
                shown = test.p <= WRONG and excludes(cell.gain) > 0
                verdicts[test.name] = SHOWN if shown else NOT_SHOWN
        results[outcome] = {
            "verdicts": verdicts,
            "intervals": {name: (number.low, number.high) for name, number in numbers.items()},
        }
    return results


def rates(mechanism: str, strength: float, size: Size, *, seed: int) -> dict[str, dict[str, Any]]:
    """The rates of one mechanism and strength, by outcome."""
    logits, labels = pool = make_pool(mechanism, strength, trainings=size.trainings, images=size.images, seed=seed)
    of_pool = measure_pool(pool)
    truth = truths(of_pool)
    draw = np.random.default_rng(seed)
    made = []
    for number in range(size.studies):
        rows = draw.integers(0, size.images, IMAGES)
        seeds = draw.integers(0, size.trainings, SEEDS)
        measured = [measure(logits[each, rows], labels[rows], resamples=RESAMPLES) for each in seeds]
        made.append(study(over_seeds(measured, seed=number)))
    shares = seed_share(of_pool)
    return {
        outcome: _summary([each[outcome] for each in made], truth[outcome], mechanism) | {"seed_share": shares[outcome]}
        for outcome in OUTCOMES
    }


def _summary(studies: list[dict[str, Any]], truth: dict[str, float], mechanism: str) -> dict[str, Any]:
    expected = true_verdicts(truth, mechanism)
    verdicts = {}
    for kind in studies[0]["verdicts"]:
        claims = Counter(each["verdicts"][kind] for each in studies)
        verdicts[kind] = {
            "truth": " or ".join(expected[kind]),
            "said": dict(claims),
            "right": sum(claims[word] for word in expected[kind]) / len(studies),
            "wrong": sum(n for word, n in claims.items() if wrong(kind, word, truth, mechanism)) / len(studies),
        }
    coverage = {
        name: float(
            np.mean([each["intervals"][name][0] <= truth[name] <= each["intervals"][name][1] for each in studies])
        )
        for name in studies[0]["intervals"]
    }
    return {"truth": truth, "verdicts": verdicts, "coverage": coverage}


def run(size: Size, unfinished: Path, *, seed: int) -> list[dict[str, Any]]:
    """All mechanisms and strengths, one record each; those of this design that are in the file are not made again."""
    design = _design(size)
    lines = [line for line in read_json_lines(unfinished) if line["design"] == design]
    made = {(line["record"]["mechanism"], line["record"]["strength"]): line["record"] for line in lines}
    records: list[dict[str, Any]] = []
    for mechanism in MECHANISMS:
        for strength in STRENGTHS if mechanism != "none" else (NAMED,):
            start = time.process_time()
            record = made.get((mechanism, strength))
            if record is None:
                outcomes = rates(mechanism, strength, size, seed=seed + 100 * len(records))
                record = {"mechanism": mechanism, "strength": strength, "outcomes": outcomes}
                lines.append({"design": design, "record": record})
                write_text(unfinished, "".join(json.dumps(line) + "\n" for line in lines))
            records.append(record)
            print(_line(record), f"({time.process_time() - start:.0f} CPU seconds)", flush=True)
    return records


def _design(size: Size) -> dict[str, Any]:
    """What records of one file have in common: the sizes, and this program with the mechanisms."""
    code = b"".join(Path(module).read_bytes() for module in (__file__, planted_pool.__file__, planted.__file__))
    return {**dataclasses.asdict(size), "code": hashlib.sha256(code).hexdigest()}


def _line(record: Mapping[str, Any]) -> str:
    parts = [f"{record['mechanism']} {record['strength']:g}"]
    for outcome, result in record["outcomes"].items():
        rates_of_kinds = [
            f"{kind} {rate['truth']}: right {100 * rate['right']:.1f}, wrong {100 * rate['wrong']:.1f}"
            for kind, rate in result["verdicts"].items()
        ]
        coverage = 100 * np.mean(list(result["coverage"].values()))
        gain = result["truth"]["gain"]
        parts.append(f"{outcome} (gain {gain:.3g}) {', '.join(rates_of_kinds)}; coverage {coverage:.1f}")
    return " | ".join(parts)


def judge(records: list[dict[str, Any]]) -> list[str]:
    """Where a limit is not kept, in sentences."""
    problems = []
    for record in records:
        name = f"{record['mechanism']} at strength {record['strength']:g}"
        for outcome, result in record["outcomes"].items():
            for kind, rate in result["verdicts"].items():
                if rate["wrong"] > MOST_WRONG:
                    problems.append(
                        f"{name}, {outcome}: {100 * rate['wrong']:.1f} % of the verdicts on the {kind} are wrong."
                    )
                if record["strength"] == NAMED and rate["right"] < LEAST_RIGHT:
                    problems.append(
                        f"{name}, {outcome}: {100 * rate['right']:.1f} % of the verdicts on the {kind} are right."
                    )
            for effect, covered in result["coverage"].items():
                if covered < COVERAGE:
                    problems.append(
                        f"{name}, {outcome}: {100 * covered:.1f} % of the intervals of {effect} cover the truth."
                    )
    return problems


def standard_error(rate: float, studies: int) -> float:
    """Of a rate that was counted over so many studies."""
    return float(np.sqrt(rate * (1 - rate) / studies))


def summary(records: Sequence[Mapping[str, Any]], studies: int) -> str:
    """What the docs say of the rates, in sentences."""
    rates = [
        (record, outcome, kind, rate)
        for record in records
        for outcome, result in record["outcomes"].items()
        for kind, rate in result["verdicts"].items()
    ]
    named = [each for each in rates if each[0]["strength"] == NAMED]
    few: dict[str, list[str]] = {}
    for record, outcome, kind, rate in named:
        if rate["right"] < LEAST_RIGHT:
            name = CALLED.get(record["mechanism"], record["mechanism"])
            few.setdefault(kind, []).append(f"{name} in {OUTCOME_NAMES[outcome]} ({100 * rate['right']:.0f} %)")
    exceptions = "; ".join(f"of those on the {kind} for {join_words(places)}" for kind, places in few.items())
    right = min(rate["right"] for *_, rate in named if rate["right"] >= LEAST_RIGHT)
    covered = [x for record in records for result in record["outcomes"].values() for x in result["coverage"].values()]
    enough = sum(x >= COVERAGE for x in covered)
    errors = [100 * standard_error(rate, studies) for rate in (MOST_WRONG, LEAST_RIGHT)]
    return (
        f"At most {100 * max(rate['wrong'] for *_, rate in rates):.1f} % of the verdicts on a mechanism are wrong. At "
        f"full strength at least {100 * right:.0f} % are right"
        + (f", except {exceptions}. " if few else ". ")
        + f"{enough} of {len(covered)} intervals keep their limit; all cover the truth in {100 * min(covered):.0f} to "
        f"{100 * max(covered):.0f} % of the studies. The standard error of a rate is {errors[0]:.1f} points at "
        f"{100 * MOST_WRONG:.0f} % and {errors[1]:.1f} at {100 * LEAST_RIGHT:.0f} %."
    )


def draw_figure(records: list[dict[str, Any]], path: Path) -> None:
    """Right and wrong verdicts against strength, a panel for each mechanism and outcome."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in MECHANISMS if name != "none"]
    figure, axes = pyplot.subplots(
        2, len(names), figsize=(2.2 * len(names), 4.4), sharex=True, sharey=True, squeeze=False
    )
    for row, outcome in zip(axes, OUTCOMES, strict=True):
        for panel, mechanism in zip(row, names, strict=True):
            of_mechanism = [record for record in records if record["mechanism"] == mechanism]
            strengths = [record["strength"] for record in of_mechanism]
            for kind, colour in COLOURS.items():
                for rate, style in (("right", "-"), ("wrong", ":")):
                    verdicts = [record["outcomes"][outcome]["verdicts"] for record in of_mechanism]
                    values = [100 * each[kind][rate] for each in verdicts if kind in each]
                    if values:
                        label = f"{rate}, {kind}"
                        panel.plot(strengths, values, style, color=colour, marker="o", markersize=3, label=label)
            panel.axhline(100 * MOST_WRONG, color="0.7", linewidth=0.8)
            panel.axhline(100 * LEAST_RIGHT, color="0.7", linewidth=0.8)
            panel.set_ylim(-2, 102)
            if outcome == OUTCOMES[0]:
                panel.set_title(mechanism, fontsize=9)
        row[0].set_ylabel(f"% of studies\n({outcome})")
    figure.supxlabel("strength of the planted mechanism", fontsize=9)
    figure.legend(*axes[-1, 0].get_legend_handles_labels(), loc="upper center", ncols=8, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(_: list[str]) -> None:
    """Runs all studies and writes what came out."""
    size = QUICK if _QUICK.value else FULL
    unfinished = Path(f"{_TO.value}.unfinished.jsonl")
    records = run(size, unfinished, seed=SEED)
    sizes = {"studies": size.studies, "trainings": size.trainings, "pool": size.images, "seeds": SEEDS}
    limits = {"wrong": MOST_WRONG, "right": LEAST_RIGHT, "coverage": COVERAGE}
    facts = sizes | {"images": IMAGES, "resamples": RESAMPLES, "named": NAMED, "limits": limits}
    broken = judge(records)
    write_text(Path(f"{_TO.value}.json"), json.dumps({**facts, "broken": broken, "records": records}, indent=1) + "\n")
    draw_figure(records, Path(f"{_TO.value}.png"))
    unfinished.unlink()
    print("\n".join([*broken, summary(records, size.studies)]))


if __name__ == "__main__":
    app.run(main)
