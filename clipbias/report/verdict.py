"""Tables and figures of the verdict and of replacements, for one dataset or several."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from clipbias.analysis.causal_section import CAUSAL, MEAN_BYTES, MEANS_OF_GROUPS
from clipbias.analysis.replacement import PLAIN, REPLACEMENT, Comparison, MethodReplacements, Origin
from clipbias.analysis.results import CausalNumbers, MethodResult, StudyResults, VerdictLabels, What, Where
from clipbias.analysis.verdict_sentences import CLASS
from clipbias.errors import ClipbiasError
from clipbias.intervals import OUTCOMES, UNITS, UNKNOWN, Estimate, by_reason, change, excludes, in_points, percent
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.names import dataset_name, ordered_datasets, ordered_methods
from clipbias.report.pages import CaptionedFigure, captioned, words_of
from clipbias.report.panels import level, lines, panels, points
from clipbias.report.table import MISSING, Table

# Quantities in the order of the table's columns. From `OTHER` on they are shares of all that is added; `CLASS_SHARE` is
# a share of the exchange.
GAIN, ATTENTION, TOKENS, ADDED = "gain", "attention alone", "tokens alone", "all that is added"
OTHER, MEAN, OF_CLASS, EXCHANGE = "another image's", "mean of all images", "mean of its class", "exchange"
CLASS_SHARE = "explained by the class"
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": name, "color": colour, "marker": marker, "ms": 5, "elinewidth": 1.4, "capsize": 0}
    for name, colour, marker in (
        (ATTENTION, style.SKY, "o"),
        (TOKENS, style.GREEN, "^"),
        (ADDED, style.ORANGE, "s"),
        (OTHER, style.BLUE, "v"),
        (MEAN, style.PURPLE, "o"),
        (OF_CLASS, style.PURPLE, "D"),
        (EXCHANGE, style.RED, "s"),
        (CLASS_SHARE, style.RED, "o"),
    )
}
COLUMNS = (
    *("Model", "In", "Gain", "Attention alone", "Tokens alone"),
    *("All added", "Another image's", "Mean of all", "Of its class", "Exchange", "By the class"),
    *("Two vectors", "Ceiling"),
)


def share_text(share: Estimate | None) -> str:
    """Writes a share with its interval, or a dash without one."""
    return MISSING if share is None else percent(share)


def quantities(numbers: CausalNumbers, labels: VerdictLabels | None) -> dict[str, Estimate]:
    """Returns the table's quantities by name."""
    named: dict[str, Estimate | None] = {GAIN: numbers.gain, ATTENTION: numbers.attention, TOKENS: numbers.tokens}
    if image := numbers.image:
        parts = {
            OTHER: image.other,
            MEAN: image.means["all images"],
            OF_CLASS: image.means.get(CLASS),
            EXCHANGE: image.exchange,
            CLASS_SHARE: image.explained.get(CLASS),
        }
        # Shares of an addition that hardly matters would be ratios of noise.
        if labels is not None and labels.what is What.NOTHING:
            parts = {name: part and dataclasses.replace(part, share=None) for name, part in parts.items()}
        named |= {ADDED: image.all, **parts}
    return {name: number for name, number in named.items() if number is not None}


def replaced(study: StudyResults, method: MethodResult) -> MethodReplacements | None:
    """Returns the replacements of a method, or of the first of its seeds."""
    # A fit may lack some seeds: another start of a training is a control, and nothing is fitted to it.
    return next((each for each in _replacements(study) if set(each.models) <= set(method.models)), None)


def _replacements(study: StudyResults) -> Sequence[MethodReplacements]:
    replacement = REPLACEMENT.of(study)
    return replacement.methods if replacement else ()


def _stand_ins(study: StudyResults, method: MethodResult) -> dict[Origin, Comparison]:
    """Returns the fits of two vectors per layer and of the method itself, by origin."""
    fitted = replaced(study, method)
    rows = fitted.rows if fitted else ()
    # The ceiling has the form of the method itself. Of the fitted forms the page shows one.
    return {row.student.kind: row for row in rows if row.student.kind is Origin.CEILING or row.student.form == PLAIN}


class Fact(NamedTuple):
    """Bar of the first page."""

    question: str  # "" below the first bar of a question
    words: str
    text: str  # the share with its interval
    spans: dict[str, tuple[float, float]]  # of the bar and of its interval, from the left and from the right in percent


def facts(study: StudyResults, method: MethodResult) -> list[Fact]:
    """Returns the bars of a method with a verdict: where it acts, what it adds, and what can stand for it.

    The first are shares in log-likelihood, the last of the predictions that the method changed.
    """
    # More likelihood without more right predictions is calibration, and nobody asks why it rose.
    numbers, labels = method.numbers, method.labels
    if numbers is None or labels is None or labels.where is Where.NO_GAIN or not method.is_better:
        return []
    # Log-likelihood decides labels, so that bars and labels cannot disagree.
    named = quantities(numbers.log_likelihood, labels)
    shares = {name: number.share for name, number in named.items()}
    fits = _stand_ins(study, method)
    moved = {origin: fits[origin].moved for origin in (Origin.FITTED, Origin.CEILING) if origin in fits}
    bars = (
        ("Where it acts: share of the gain if", "it only looks elsewhere", shares.get(ATTENTION)),
        ("", "it only adds to tokens", shares.get(TOKENS)),
        ("What it adds: share of the effect with", "another picture's addition", shares.get(OTHER)),
        ("", "the mean of all pictures", shares.get(MEAN)),
        ("", "the mean of its class", shares.get(OF_CLASS)),
        ("Something simpler: same changes by", "two vectors per layer", moved.get(Origin.FITTED)),
        ("", "the method itself, refitted", moved.get(Origin.CEILING)),
    )
    return [
        Fact(question, words, percent(share), {"value": _span(0.0, share.value), "ends": _span(share.low, share.high)})
        for question, words, share in bars
        if share is not None
    ]


def _span(start: float | None, end: float | None) -> tuple[float, float]:
    """Places a span of shares on a bar from -50 to 150 %; a missing end makes it empty."""
    low, high = sorted(min(max(50 * (each + 0.5), 0.0), 100.0) for each in (start or 0.0, end or 0.0))
    # From the left and from the right, as the page's style places a bar.
    return low, 100 - high


def verdict_table(study: StudyResults, methods: Sequence[MethodResult], title: str = "") -> Table | None:
    """Makes two rows for each method with numbers, in points and in log-likelihood."""
    rows = []
    for method in methods:
        if method.numbers is None:
            continue
        stand_ins = _stand_ins(study, method)
        for outcome, numbers in method.numbers.items():
            # Points have no shares: a share of an accuracy's gain of a few images would be a ratio of noise.
            decides = outcome != "accuracy"
            named = quantities(numbers, method.labels)
            texts = [method.label, "nats, %" if decides else "points", change(numbers.gain, outcome)]
            for number in map(named.get, _LOOKS):
                if decides:
                    texts.append(share_text(number.share if number and excludes(numbers.gain) > 0 else None))
                else:
                    texts.append(change(number, outcome) if number else MISSING)
            for kind in (Origin.FITTED, Origin.CEILING):
                row = stand_ins.get(kind)
                texts += [share_text((row.share if decides else row.moved) if row else None)]
            rows.append(texts)
    # Columns of dashes alone say nothing, and phones are narrow.
    measured = [place for place, texts in enumerate(zip(*rows, strict=True)) if set(texts) != {MISSING}]
    heads = [COLUMNS[place] for place in measured]
    rows = [[row[place] for place in measured] for row in rows]
    return Table(title, words_of("verdict_table")[1], heads, rows, words={1}) if rows else None


def seed_table(study: StudyResults) -> Table | None:
    """Makes the verdict table of each seed of methods with several."""
    causal = CAUSAL.of(study)
    # Labels stay those of the method: a single seed decides none.
    seeds = [
        dataclasses.replace(
            method, label=study.labels[key], models=(key,), numbers=causal.of((key,)) if causal else None
        )
        for method in study.methods
        if len(method.models) > 1
        for key in method.models
    ]
    return verdict_table(study, seeds, "Seed by seed")


def towers_table(methods: Sequence[MethodResult]) -> Table | None:
    """Makes the table of towers alone and of additions to text tokens, in log-likelihood."""
    rows = []
    for method in methods:
        # Shares of a gain that is not sure would be dashes in every column.
        if method.numbers is None or excludes(method.numbers.log_likelihood.gain) <= 0:
            continue
        numbers = method.numbers.log_likelihood
        # A method that changes a single tower has neither: that tower is the whole gain.
        parts = [numbers.towers.get("vision"), numbers.towers.get("text")]
        parts += [numbers.text.all, numbers.text.mean] if numbers.text else [None, None]
        rows.append([method.label, *(share_text(part.share if part else None) for part in parts)])
    heads = ("Model", "Vision tower alone", "Text tower alone", "All added to texts", "Its mean over classes")
    return Table(*words_of("towers_table"), heads, rows) if rows else None


def why_not_patched(study: StudyResults) -> list[str]:
    """Returns the reasons why the causal test lacks methods or their ablations, a sentence each."""
    causal = CAUSAL.of(study)
    tests = [(study.labels[key], test) for key, test in causal.models.items()] if causal else []
    reasons = [(label, test.why) for label, test in tests]
    for method in study.methods:
        # Groups that do not fit into memory are left out of the test without a reason of their own.
        image = method.numbers.log_likelihood.image if method.numbers else None
        if image is not None and CLASS not in image.means:
            size = f"{MEAN_BYTES / 2**30:.0f} GiB"
            reasons.append((method.label, f"Means over classes would take more than {size}, and are left out."))
    return by_reason(reasons + [(label, why) for label, test in tests for why in test.why_no_ablations.values()])


def verdict_frame(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """Makes a row for each dataset, method, outcome and quantity, with its share of the whole and the labels."""
    rows = []
    for study in studies:
        for method in study.methods:
            for outcome, numbers in () if method.numbers is None else method.numbers.items():
                labels = method.labels
                where = "" if labels is None else labels.where.value
                what = "" if labels is None or labels.what is None else labels.what.value
                place = (study.dataset.name, method.name, len(method.models), where, what, outcome, UNITS[outcome][0])
                for name, number in quantities(numbers, labels).items():
                    rows.append((*place, name, *number.ends, *(number.share or UNKNOWN).ends))
    ends = ["value", "low", "high", "share", "share_low", "share_high"]
    heads = ["dataset", "method", "seeds", "where", "what", "outcome", "unit", "quantity", *ends]
    return pd.DataFrame(rows, columns=heads)


def overview_figure(studies: Sequence[StudyResults]) -> CaptionedFigure | None:
    """Draws the shares that decide labels, with all datasets side by side. Returns `None` without a sure gain."""
    numbers = verdict_frame(studies)
    # Points of accuracy stay in the file: a share of a gain of a few images would be a ratio of noise.
    is_drawn = (numbers["outcome"] == OUTCOMES[1]) & numbers["quantity"].isin(list(_LOOKS)) & numbers["share"].notna()
    drawn = numbers[is_drawn]
    if drawn.empty:
        return None
    low, high, value = (100 * drawn[f"share{end}"].astype(float) for end in ("_low", "_high", ""))
    drawn = drawn.assign(value=value, low=low, high=high)
    # Names of methods differ by seeds and datasets; their order is that of the registry.
    of_method = {method.name: method.method for study in studies for method in study.methods}
    order = ordered_methods(of_method.values())
    methods = sorted(dict.fromkeys(drawn["method"]), key=lambda name: order.index(of_method[name]))
    datasets = ordered_datasets(study.dataset.name for study in studies)
    drawn = drawn.sort_values("dataset", key=lambda column: column.map(list(datasets).index), kind="stable")
    # Long names would leave no room for the panels.
    lines = [textwrap.fill(name, 16) for name in methods]

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        points(axes, part, category="method", hue="quantity", looks=_LOOKS, places=methods, step=0.12)
        axes.set_yticks(range(len(lines)), lines)
        for line in range(1, len(lines)):
            axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        for limit in (-50.0, -25.0, 25.0, 50.0):  # of the labels
            axes.axvline(limit, color=style.GREY, linewidth=0.8, linestyle=style.DASHED)
        low, high = axes.get_xlim()
        # One wide interval would press all others together.
        axes.set_xlim(max(low, -60.0), min(high, 160.0))
        axes.set_xticks([tick for tick in (-50, 0, 50, 100, 150) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])

    figure = panels(
        drawn,
        draw,
        by=("", "dataset"),
        names={name: dataset_name(name) for name in datasets},
        # Few panels have a legend of few columns, which takes their height.
        size=(2.1, 0.9 * len(lines) + 0.24 * math.ceil(len(_LOOKS) / min(len(datasets), 4))),
        x_label="% of the gain, or of what is added",
        share_y=True,
        wrap=4,
    )
    return captioned("verdict", figure, numbers, datasets=", ".join(map(dataset_name, datasets)))


_APART = {"all": "all images", "right": "zero-shot right", "wrong": "zero-shot wrong"}
_STEPS = (OTHER, *MEANS_OF_GROUPS)  # from attention alone, at 0 %, to the image's own, at 100 %


def reading_frame(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """Makes a row for each dataset, method, group of test images and step of the reading curve, in percent.

    A step is the effect of an addition as a share of all that is added, in log-likelihood, and the points beside it.
    """
    rows = []
    for study in studies:
        for method in study.methods:
            numbers = method.numbers
            # Without a sure gain, and where what is added hardly matters, shares are ratios of noise.
            if numbers is None or method.labels is None or method.labels.what in (None, What.NOTHING):
                continue
            for among in _APART:
                accuracy, nats = (
                    each.image if among == "all" else each.apart.get(among) for _, each in numbers.items()
                )
                if accuracy is None or nats is None:
                    continue
                points_of = {OTHER: accuracy.other, **accuracy.means}
                for name, effect in {OTHER: nats.other, **nats.means}.items():
                    if effect.share is not None:
                        place = (study.dataset.name, method.name, among, name)
                        rows.append((*place, *in_points(effect.share).ends, *points_of[name].ends))
    ends = ["value", "low", "high", "points", "points_low", "points_high"]
    return pd.DataFrame(rows, columns=["dataset", "method", "among", "step", *ends])


def reading_figure(studies: Sequence[StudyResults]) -> CaptionedFigure | None:
    """Draws the reading curve of each method: how much the means over ever smaller groups keep of what is added.

    One dataset has its images apart by zero-shot's prediction, several stand side by side. Returns `None` without a
    method whose additions matter.
    """
    numbers = reading_frame(studies)
    if numbers.empty:
        return None
    # Several datasets would have three panels each.
    apart = len(studies) == 1
    drawn = numbers if apart else numbers[numbers["among"] == "all"]
    # Small datasets have no images for the smaller groups.
    steps = [step for step in _STEPS if (drawn["step"] == step).any()]
    drawn = drawn.assign(place=drawn["step"].map(steps.index))
    looks = {
        name: {"label": name, "color": style.COLOURS[at % len(style.COLOURS)], "marker": "o", "ms": 3}
        for at, name in enumerate(dict.fromkeys(drawn["method"]))
    }

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        # Attention alone is at 0, the image's own addition at 100.
        level(axes, 0)
        level(axes, 100)
        lines(axes, part, x="place", hue="method", looks=looks)
        axes.set_xticks(range(len(steps)), steps, rotation=40, ha="right")
        axes.set_ylim(-60, 140)  # one wide interval would press all others together

    figure = panels(
        drawn,
        draw,
        by=("", "among" if apart else "dataset"),
        names=_APART if apart else {name: dataset_name(name) for name in drawn["dataset"]},
        y_label="% of what is added",
        wrap=None if apart else 4,
    )
    return captioned("reading", figure, numbers)


_REPLACEMENT_COLUMNS = (
    *("Method", "Replacement", "Numbers", "Steps", "Share of the gain", "Accuracy less the method's", "KL (nats)"),
    *("Same predictions", "Same changed predictions", "Less the ceiling's", "Cosine", "Conclusion"),
)
_ORIGIN_WORDS = {
    Origin.FITTED: "{}",
    Origin.CEILING: "the ceiling: {}",
    Origin.MEAN: "the mean: {}",
    Origin.LABELS: "{}, on labels",
    Origin.RETRAINED: "{}, retrained",
}
_ORIGIN_LOOKS: dict[str, dict[str, Any]] = {
    kind: {"label": label, "color": colour, "marker": marker, "ms": 4.5, "elinewidth": 1.2, "capsize": 0}
    for kind, label, colour, marker in (
        (Origin.CEILING, "the method itself, fitted (ceiling)", style.BLACK, "D"),
        (Origin.FITTED, "two vectors, fitted", style.RED, "o"),
        (Origin.LABELS, "two vectors, on labels", style.BLUE, "s"),
        (Origin.MEAN, "two vectors, the mean", style.PURPLE, "v"),
    )
}


def replacement_table(study: StudyResults) -> Table | None:
    """Makes a row for each method and replacement; `None` where nothing was fitted."""
    rows = [
        (
            method.name,
            _ORIGIN_WORDS[row.student.kind].format(row.student.words),
            f"{row.student.numbers:,}",
            MISSING
            if row.student.steps is None
            else f"{row.student.steps:,}{'' if row.student.plateau else ' (bound)'}",
            share_text(row.share),
            MISSING if row.difference is None else change(in_points(row.difference), "accuracy"),
            f"{row.divergence.value:.3g}",
            share_text(row.agreement),
            share_text(row.moved),
            MISSING if row.less_ceiling is None else change(in_points(row.less_ceiling), "accuracy"),
            MISSING if row.cosine is None else f"{row.cosine.value:.2f}",
            row.word.value if row.word else "",
        )
        for method in _replacements(study)
        for row in method.rows
    ]
    return Table(*words_of("replacement_table"), _REPLACEMENT_COLUMNS, rows, words={1, 11}) if rows else None


DRAWING_OF_REPLACEMENT = Drawing(REPLACEMENT, place=20, tables=(replacement_table,), nothing="nothing was fitted")


def replacement_frame(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """Makes a row for each dataset, method and replacement; shares and differences are in percent."""
    rows = []
    for study in studies:
        for method in _replacements(study):
            for row in method.rows:
                columns: dict[str, object] = {
                    "method": method.name,
                    "dataset": study.dataset.name,
                    "models": row.models,
                    "kind": row.student.kind.value,
                    "form": row.student.form,
                    "numbers": row.student.numbers,
                    "steps": row.student.steps,
                    "plateau": row.student.plateau,
                    "divergence": row.divergence.value,
                }
                parts = {"": row.share, "moved_": row.moved}
                parts |= {"less_ceiling_": row.less_ceiling, "difference_": row.difference}
                for start, share in parts.items():
                    ends = (in_points(share) if share else UNKNOWN).ends
                    columns |= dict(zip((f"{start}value", f"{start}low", f"{start}high"), ends, strict=True))
                rows.append({**columns, "word": row.word.value if row.word else ""})
    return pd.DataFrame(rows)


def replacement_figure(studies: Sequence[StudyResults], methods: Sequence[str] = ()) -> CaptionedFigure | None:
    """Draws shares of the gain and of the changed predictions of `methods` (default: all), by dataset.

    Returns `None` where nothing was fitted. Raises `ClipbiasError` for a method without replacements.
    """
    numbers = replacement_frame(studies)
    if numbers.empty:
        return None
    present = list(dict.fromkeys(numbers["method"]))
    if unknown := [name for name in methods if name not in present]:
        raise ClipbiasError(f"nothing was fitted to {unknown[0]!r}; there are {', '.join(present)}.")
    drawn = list(methods) or present
    # The ceiling has the method's own form, so it is selected by its origin.
    of_form = numbers[numbers["method"].isin(drawn) & (numbers["form"].eq(PLAIN) | numbers["kind"].eq(Origin.CEILING))]
    parts = []
    for start, quantity in (("", "gain"), ("moved_", "changed predictions")):
        ends = {end: of_form[start + end] for end in ("value", "low", "high")}
        parts.append(of_form[["method", "dataset", "kind"]].assign(quantity=quantity, **ends))
    shown = pd.concat(parts).dropna(subset="value")
    if shown.empty:
        return None

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        level(axes, 0, "x")
        level(axes, 100, "x")
        points(axes, part, category="method", hue="kind", looks=_ORIGIN_LOOKS, places=drawn)
        axes.set_xlim(-20, 140)  # what lies outside is cut off

    figure = panels(
        shown,
        draw,
        by=("quantity", "dataset"),
        size=(2.0, 0.35 + 0.36 * len(drawn)),
        names={name: dataset_name(name) for name in shown["dataset"]},
        x_label="%",
    )
    return captioned("replacements", figure, numbers, message=replacement_message(of_form))


def replacement_message(numbers: pd.DataFrame) -> str:
    """Writes a sentence on the gap between the two vectors and the ceiling in rows of a `replacement_frame`."""
    if numbers["moved_value"].isna().all():
        return "No prediction changed."
    # The column is the student less the ceiling.
    gaps = numbers["less_ceiling_value"].dropna().round()
    if gaps.empty and numbers["kind"].eq(Origin.CEILING).any():
        return "The share of changed predictions is too uncertain to compare two vectors per layer with the ceiling."
    if gaps.empty:
        return "No method was fitted to itself, so there is no ceiling."
    low, high = gaps.min(), gaps.max()
    span = f"from {-low:.0f} fewer to {high:.0f} more"
    if low * high >= 0:  # on one side
        numbers_of = dict.fromkeys(f"{gap:.0f}" for gap in sorted((abs(low), abs(high))))
        span = f"{' to '.join(numbers_of)} {'more' if high > 0 else 'fewer'}"
    return (
        f"Of 100 predictions that a method changed, two vectors per layer make {span} than the method itself, "
        "fitted in the same way."
    )
