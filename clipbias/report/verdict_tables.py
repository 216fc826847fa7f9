"""The verdict's numbers as tables: what carries the gain, what replacements keep of it, and areas under curves."""

from collections.abc import Sequence

from clipbias.explain.answer import dataset_sentences
from clipbias.explain.conclusions import effect_names
from clipbias.explain.effects import KEPT, LOST, OUTCOME_NAMES, OUTCOMES, UNITS
from clipbias.explain.replacement_names import ANOTHER_DATASET, PLAIN, RANDOM, REPLACEMENT_FORM_NAMES
from clipbias.explain.results import MAPS, Missing, StudyResults, present
from clipbias.explain.uncertainty import FEWEST_DATASETS, LEVEL, Estimate, excludes, mean_over_datasets
from clipbias.explain.wording import amount, by_reason, change, percent
from clipbias.report.methods import MethodResults, MethodSummary
from clipbias.report.published import dataset_name
from clipbias.report.study_figures import MAP_NAMES, labels_of
from clipbias.report.table import MISSING, Table, cells

_FIRST = {"positive": "Most", "negative": "Least"}
_LEARNS = "It learns such a constant, so what that keeps is no finding."
_HEADS = {"accuracy": "Accuracy", "calibrated": "Calibrated"}
# Mixtures of the two runs, by effects with and without a scale.
_CORNERS = {
    **dict.fromkeys(("PRR", "PR"), "attention alone"),
    **dict.fromkeys(("RPP", "RP"), "tokens alone, attention frozen"),
    **dict.fromkeys(("PPP", "PP"), "all: the gain"),
}
# What is put in a method's place.
_CONSTANTS = {
    **REPLACEMENT_FORM_NAMES,
    RANDOM: "control: random, same norms",
    ANOTHER_DATASET: "control: another dataset's",
}
# Steps between levels of what is added to image and to text tokens.
_STEPS = {
    "vision": {
        "constant": "image tokens: the mean over training images",
        "mismatch": "image tokens: another image's, against the mean",
        "image": "image tokens: its own, against another image's",
        "all": "image tokens: all that is added",
        "fitted": "image tokens: the best constant",
    },
    "text": {
        "constant": "text tokens: the mean over classes",
        "class": "text tokens: its own, against the mean",
        "all": "text tokens: all that is added",
    },
}
_BRACKETS = f"In brackets {100 * LEVEL:.0f} % intervals over images, and over seeds where there are several"


def effects_table(methods: Sequence[MethodResults]) -> Table | None:
    """Per method, each effect's and interaction's change of both outcomes and its share of each gain."""
    rows = [row for method in methods for row in _effect_rows(method)]
    heads = [text for outcome in OUTCOMES for text in (f"{_HEADS[outcome]} ({UNITS[outcome][0]})", "Share of it")]
    caption = (
        f"Changes of accuracy and of calibrated log-likelihood. {_BRACKETS}; a dash where the gain is not surely above"
        " 0. The effects add up to the gain. “Together”: what effects give beyond the sum of what their parts give;"
        " where that is large, the effects' shares are means over the orders in which they are added."
    )
    return Table("", caption, ("Model", "Effect", *heads), tuple(rows), words={1}) if rows else None


def _effect_rows(method: MethodResults) -> list[tuple[str, ...]]:
    numbers = {outcome: effects for outcome in OUTCOMES if (effects := method.effects(outcome)) is not None}
    if not numbers:
        return []
    label = method.facts.label
    headline = numbers[OUTCOMES[0]]
    names = effect_names(method.facts.prompts) | dict.fromkeys(headline.interactions, "together")
    rows = []
    for name in (*headline.effects, *headline.interactions):
        texts: list[str] = []
        for outcome, effects in numbers.items():
            number = (effects.effects | effects.interactions)[name]
            texts += _with_share(number, outcome, effects.gain)
        rows.append(cells(label, f"{name}: {names[name]}", *texts))
    gains = []
    for outcome, effects in numbers.items():
        gains += [change(effects.gain, outcome), MISSING]
    return [*rows, cells(label, "all: the gain", *gains)]


def _with_share(number: Estimate, outcome: str, gain: Estimate) -> tuple[str, str]:
    """A change of an outcome, and its share of the gain where that is surely above 0."""
    return change(number, outcome), share_text(number.share if excludes(gain) > 0 else None)


def corners_table(methods: Sequence[MethodResults]) -> Table | None:
    """Per method, what attention and tokens give alone, and the gain: effects that are not averaged over orders."""
    rows = []
    for method in methods:
        numbers = {outcome: effects for outcome in OUTCOMES if (effects := method.effects(outcome)) is not None}
        for stream, words in _CORNERS.items():
            texts: list[str] = []
            for outcome, effects in numbers.items():
                if stream in effects.corners:
                    texts += _with_share(effects.corners[stream], outcome, effects.gain)
            if texts:
                rows.append(cells(method.facts.label, words, *texts))
    caption = (
        "Against the frozen model. Attention alone: the tuned model's attention among input tokens, all else frozen;"
        " so much of the gain attention suffices for. Tokens alone: what the tuned model adds to tokens, its attention"
        " frozen; what this lacks of the gain needs attention. Prompts as tokens are their scale and their values"
        f" together. {_BRACKETS}; a dash where the gain is not surely above 0."
    )
    heads = [text for outcome in OUTCOMES for text in (f"{_HEADS[outcome]} ({UNITS[outcome][0]})", "Share of the gain")]
    return Table("", caption, ("Model", "Of the tuned model", *heads), tuple(rows), words={1}) if rows else None


def levels_table(methods: Sequence[MethodResults]) -> Table | None:
    """Per method and tower, what of all that it adds a constant gives, another image's values, and its own."""
    rows = []
    for method in methods:
        for tower, levels in ({} if method.summary is None else method.summary.levels).items():
            for step, words in _STEPS[tower].items():
                texts: list[str] = []
                for outcome, numbers in levels.items():
                    number = {**numbers.steps, "all": numbers.all, "fitted": numbers.fitted}[step]
                    if number is None:
                        continue
                    texts += _with_share(number, outcome, numbers.all)
                    texts.append(change(numbers.shapley[step], outcome) if step in numbers.shapley else MISSING)
                if texts:
                    rows.append(cells(method.facts.label, words, *texts))
    best = ""
    if any(row[1] == _STEPS["vision"]["fitted"] for row in rows):
        best = " The best constant is fitted to the tuned model's predictions on training images; it is no step."
    caption = (
        "At the tuned model's attention, what it adds to tokens, in steps from nothing to all of it: the mean by layer"
        " and kind of token; what it adds for another image, a mean over draws of training images; and what it adds for"
        f" this one.{best} A method that learns a constant has all of it in the mean. Texts are as tuned while what is"
        " added to images varies; images are CLIP's while it varies in texts. In the Shapley value: the steps' parts of"
        f" that of values. {_BRACKETS}; a dash where all that is added is not surely worth more than 0."
    )
    heads = [
        text
        for outcome in OUTCOMES
        for text in (f"{_HEADS[outcome]} ({UNITS[outcome][0]})", "Share of all", "In the Shapley value")
    ]
    return Table("", caption, ("Model", "Added to", *heads), tuple(rows), words={1}) if rows else None


def why_no_levels(methods: Sequence[MethodResults]) -> list[str]:
    """One sentence for each reason why what methods add was not divided into levels."""
    tests = [(method.facts.label, method.test) for method in methods if method.test is not None]
    return by_reason(
        (label, levels.reason)
        for label, test in tests
        for levels in test.levels.values()
        if isinstance(levels, Missing)
    )


def temperature_table(methods: Sequence[MethodResults]) -> Table | None:
    """What one number that moves no decision gives of the gain in raw log-likelihood, and the temperatures."""
    rows = []
    for method in methods:
        if method.summary is not None:
            temperatures = list(method.summary.temperatures.values())
            alone = method.summary.temperature_alone
            rows.append(
                cells(
                    method.facts.label,
                    amount(alone, "calibrated"),
                    share_text(alone.share),
                    f"{temperatures[0]:.2f}",
                    f"{temperatures[-1]:.2f}",
                    "yes" if method.summary.refitted else "no",
                )
            )
    caption = (
        "What the frozen model gains in raw log-likelihood from a temperature alone, which moves no decision, and its"
        f" share of the tuned model's gain. {_BRACKETS}. Calibrated log-likelihood has each model's logits divided by"
        " its temperature, fitted on the other half of the images."
    )
    heads = ("Model", "Temperature alone", "Share of the raw gain", "Frozen T", "Tuned T", "Fitted in each resample")
    return Table("What a temperature alone gives", caption, heads, tuple(rows)) if rows else None


def constants_table(methods: Sequence[MethodResults]) -> Table | None:
    """Per method, what each form of the mean and control keeps of both gains, and what is lost without it."""
    rows: list[tuple[str, ...]] = []
    for method in methods:
        stored = {} if method.constants is None else method.constants.stored
        for name in method.replacements(OUTCOMES[0], KEPT):
            shares = [share_text(method.share(outcome, kind, name)) for outcome in OUTCOMES for kind in (KEPT, LOST)]
            rows.append(cells(method.facts.label, _CONSTANTS[name], f"{stored.get(name, stored[PLAIN]):,}", *shares))
    caption = (
        "Share of the gain in accuracy and in calibrated log-likelihood that is kept if the mean of what the tuned"
        " blocks add is added to the frozen model, in two forms, and lost if it is subtracted from the tuned one."
        f" {_BRACKETS}; a dash where the gain is not surely above 0. Controls are by kind. Another constant than the"
        " mean may keep more."
    )
    heads = [f"{kind}, {_HEADS[outcome].lower()}" for outcome in OUTCOMES for kind in ("Kept", "Lost")]
    return Table("", caption, ("Model", "In its place", "Numbers", *heads), tuple(rows), words={1}) if rows else None


def share_text(share: Estimate | None) -> str:
    """A share of the gain with its interval, or a dash where there is no gain to share out."""
    return MISSING if share is None else percent(share)


def why_no_effects(methods: Sequence[MethodResults]) -> list[str]:
    """One sentence for each reason why methods' gains could not be taken apart."""
    return by_reason((each.facts.label, each.verdict.missing) for each in methods if each.verdict is not None)


def why_no_constants(study: StudyResults, methods: Sequence[MethodResults]) -> list[str]:
    """One sentence for each reason why no constant was measured of methods, or why it says nothing."""
    measured = "constants" in study.sections
    otherwise = "No constant was measured" + ("." if measured else "; --config.sections=constants has it.")
    missing = study.why_missing("constants")
    reasons = []
    for method in methods:
        if method.verdict is not None and method.replaced is None:
            reason = missing.get(method.facts.models[0], otherwise)
            reasons.append((method.facts.label, _LEARNS if method.facts.learns_constant else reason))
    return by_reason(reasons)


def summary_table(summary: MethodSummary) -> Table:
    """One method: gains, effects, interactions, kept and lost, datasets side by side; from two on, their mean."""
    methods = summary.by_dataset
    rows = [row for outcome in OUTCOMES for row in _summary_rows(list(methods.values()), outcome)]
    heads = [dataset_name(name) + _seeds(len(method.facts.models)) for name, method in methods.items()]
    caption = (
        f"{_BRACKETS}; a share has a dash where its gain is not surely above 0. The mean over datasets has an interval"
        f" from {FEWEST_DATASETS} datasets on, since a dataset is one observation."
    )
    if len(methods) > 1:
        heads.append("Mean")
    return Table("", caption, ("", *heads), tuple(rows))


def _seeds(count: int) -> str:
    return f" ({count} seeds)" if count > 1 else ""


def _summary_rows(methods: Sequence[MethodResults], outcome: str) -> list[tuple[str, ...]]:
    """The rows of one outcome, a cell for each dataset, and for their mean."""
    rows = []
    numbers = [method.named(outcome) for method in methods]
    for name in dict.fromkeys(name for named in numbers for name in named):
        known = [named.get(name) for named in numbers]
        texts = [MISSING if number is None else change(number, outcome) for number in known]
        head = f"{OUTCOME_NAMES[outcome]}, {UNITS[outcome][0]}: {name}"
        mean = _mean(known)
        rows.append(cells(head, *texts, *(change(each, outcome) if each else MISSING for each in mean)))
    for kind, preposition in ((KEPT, "with"), (LOST, "without")):
        shares = [method.share(outcome, kind) for method in methods]
        if any(shares):
            head = f"{OUTCOME_NAMES[outcome]}: {kind} {preposition} the mean as two vectors"
            rows.append(cells(head, *map(share_text, shares), *map(share_text, _mean(shares))))
    return rows


def _mean(numbers: Sequence[Estimate | None]) -> list[Estimate | None]:
    """The mean of two datasets or more, `None` in it where not all of them have the number."""
    known = [number.value for number in numbers if number is not None]
    if len(numbers) < 2:
        return []
    return [mean_over_datasets(known) if len(known) == len(numbers) else None]


def summary_sentences(summary: MethodSummary) -> list[str]:
    """Each dataset's conclusion, and from five datasets on what their mean says."""
    conclusions = {
        dataset_name(dataset): "" if method.verdict is None else method.verdict.conclusion
        for dataset, method in summary.by_dataset.items()
    }
    gains = {}
    for outcome in OUTCOMES:
        effects = [method.effects(outcome) for method in summary.by_dataset.values()]
        gains[outcome] = [each.gain for each in effects if each is not None]
    return dataset_sentences(conclusions, gains)


def area_table(study: StudyResults) -> Table | None:
    """The areas under the curves of the perturbation test in percent, a row per model and map."""
    if study.faithfulness is None:
        return None
    labels = labels_of(study.models)
    targets = ("predicted", "true")
    rows = []
    for key, result in present(study.faithfulness.models).items():
        for kind in MAPS:
            curves = result.maps[kind]
            areas = [curves[direction][target].area for direction in _FIRST for target in targets]
            rows.append(cells(labels[key], MAP_NAMES[kind], *(f"{100 * area:.1f}" for area in areas)))
    caption = (
        "Area under each curve in percent. Most relevant first: the smaller, the better the map; least relevant first:"
        " the larger, the better."
    )
    heads = [f"{first} first, {target}" for first in _FIRST.values() for target in targets]
    return Table("", caption, ("Model", "Map", *heads), tuple(rows), words={1}) if rows else None
