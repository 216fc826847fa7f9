"""The verdict's numbers as tables: what carries the gain, what a constant keeps of it, and areas under curves."""

from collections.abc import Mapping, Sequence

from clipbias.explain.conclusions import amount, effect_names, percent
from clipbias.explain.effects import KEPT, LOST, OUTCOME_NAMES, OUTCOMES, UNITS
from clipbias.explain.results import MAPS
from clipbias.explain.rungs import CONSTANT_METHODS, PLAIN, RUNG_NAMES
from clipbias.explain.uncertainty import FEWEST_DATASETS, LEVEL, Estimate, excludes, mean_over_datasets
from clipbias.report.methods import MethodResults, MethodSummary
from clipbias.report.published import dataset_name
from clipbias.report.study_figures import MAP_NAMES
from clipbias.report.study_results import StudyResults, by_reason, counted, label_of
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_figures import CONTROLS

_FIRST = {"positive": "Most", "negative": "Least"}
_HEADS = {"accuracy": "Accuracy", "calibrated": "Calibrated"}
_BRACKETS = f"In brackets {100 * LEVEL:.0f} % intervals over images, and over seeds where there are several"


def effects_table(methods: Sequence[MethodResults]) -> Table | None:
    """Per method, each effect's and interaction's change of both outcomes and its share of each gain."""
    rows: list[tuple[str, ...]] = []
    for each in methods:
        numbers = {outcome: each.effects(outcome) for outcome in OUTCOMES}
        if not all(numbers.values()):
            continue
        sure = {outcome: excludes(own["gain"]) > 0 for outcome, own in numbers.items()}
        for kind in ("effects", "interactions"):
            for name in numbers[OUTCOMES[0]][kind]:
                long = {**effect_names(each.prompts), **dict.fromkeys(numbers[OUTCOMES[0]]["interactions"], "together")}
                texts = []
                for outcome, own in numbers.items():
                    number = own[kind][name]
                    texts += [change_text(number, outcome), share_text(number if sure[outcome] else None)]
                rows.append(cells(each.label, f"{name}: {long[name]}", *texts))
        texts = [text for outcome, own in numbers.items() for text in (change_text(own["gain"], outcome), MISSING)]
        rows.append(cells(each.label, "all: the gain", *texts))
    heads = [text for outcome in OUTCOMES for text in (f"{_HEADS[outcome]} ({UNITS[outcome][0]})", "Share of it")]
    caption = (
        f"Changes of accuracy and of calibrated log-likelihood. {_BRACKETS}; a dash where the gain is not surely above"
        " 0. The effects add up to the gain. “Together”: what effects give beyond the sum of what their parts give;"
        " where that is large, the effects' shares are means over the orders in which they are added."
    )
    return Table("", caption, ("Model", "Effect", *heads), tuple(rows), words={1}) if rows else None


def temperature_table(methods: Sequence[MethodResults]) -> Table | None:
    """What one number that moves no decision gives of the gain in raw log-likelihood, and the temperatures."""
    rows = []
    for each in methods:
        if "temperature_alone" in each.test:
            alone, found = each.test["temperature_alone"], list(each.test["temperatures"].values())
            rows.append(
                cells(
                    each.label,
                    amount(alone, "calibrated"),
                    share_text(alone),
                    f"{found[0]:.2f}",
                    f"{found[-1]:.2f}",
                    "yes" if each.test["refitted"] else "no",
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
    """Per method, what each rung and control keeps of both gains, and what is lost without it."""
    rows: list[tuple[str, ...]] = []
    for each in methods:
        names = each.replaced(OUTCOMES[0]).get(KEPT, {})
        stored = each.constants.get("stored", {})
        for name in names:
            shares = [share_text(each.share(outcome, kind, name)) for outcome in OUTCOMES for kind in (KEPT, LOST)]
            called = RUNG_NAMES.get(name) or f"control: {CONTROLS.get(name, name)}"
            rows.append(cells(each.label, called, f"{stored.get(name, stored[PLAIN]):,}", *shares))
    caption = (
        "Share of the gain in accuracy and in calibrated log-likelihood that is kept if the constant is added to the"
        f" frozen model, and lost if it is subtracted from the tuned one. {_BRACKETS}; a dash where the gain is not"
        " surely above 0. Controls are by kind."
    )
    heads = [f"{kind}, {_HEADS[outcome].lower()}" for outcome in OUTCOMES for kind in ("Kept", "Lost")]
    return Table("", caption, ("Model", "In its place", "Numbers", *heads), tuple(rows), words={1}) if rows else None


def change_text(number: Mapping[str, float | None], outcome: str) -> str:
    """A change with its interval, without its unit."""
    if number["low"] is None:
        return f"{round(number['value'] or 0.0, UNITS[outcome][1]) + 0.0:+.{UNITS[outcome][1]}f}"
    return amount(dict(number), outcome).replace(f" {UNITS[outcome][0]}", "", 1)


def share_text(number: Mapping[str, float | None] | None) -> str:
    """A share of the gain with its interval, or a dash where there is no gain to share out."""
    return MISSING if number is None or number.get("share") is None else percent(dict(number))


def why_no_effects(methods: Sequence[MethodResults]) -> list[str]:
    """One sentence for each reason why methods' gains could not be taken apart."""
    return by_reason((each.label, each.verdict.get("missing", "")) for each in methods)


def why_no_constants(study: StudyResults, methods: Sequence[MethodResults]) -> list[str]:
    """One sentence for each reason why no constant was measured of methods, or why it says nothing."""
    asked = "constants" in study.scalars["sections"]
    otherwise = "No constant was measured" + ("." if asked else "; --config.sections=constants has it.")
    learns = "It learns such a constant, so what that keeps is no finding."
    return by_reason(
        (each.label, learns if each.method in CONSTANT_METHODS else each.constants.get("missing") or otherwise)
        for each in methods
        if each.verdict and not each.replaced(OUTCOMES[0])
    )


def summary_table(summary: MethodSummary) -> Table:
    """One method: gains, effects, interactions, kept and lost, datasets side by side; from two on, their mean."""
    found = summary.by_dataset
    rows = []
    for outcome in OUTCOMES:
        numbers = {dataset: own.numbers(outcome) for dataset, own in found.items()}
        names = dict.fromkeys(name for own in numbers.values() for name in own if ":" not in name)
        for name in names:
            texts = [change_text(own[name], outcome) if name in own else MISSING for own in numbers.values()]
            known = [own[name]["value"] for own in numbers.values() if name in own]
            head = f"{OUTCOME_NAMES[outcome]}, {UNITS[outcome][0]}: {name}"
            rows.append(cells(head, *texts, *_mean(known, outcome, len(found))))
        for kind in (KEPT, LOST):
            shares = [own.share(outcome, kind) for own in found.values()]
            if any(shares):
                known = [number["share"] for number in shares if number]
                head = f"{OUTCOME_NAMES[outcome]}: {kind} {'with' if kind == KEPT else 'without'} two vectors"
                rows.append(cells(head, *map(share_text, shares), *_mean(known, "share", len(found))))
    heads = [
        dataset_name(name) + (f" ({len(own.keys)} seeds)" if len(own.keys) > 1 else "") for name, own in found.items()
    ]
    caption = (
        f"{_BRACKETS}; a share has a dash where its gain is not surely above 0. The mean over datasets has an interval"
        f" from {FEWEST_DATASETS} datasets on, since a dataset is one observation."
    )
    return Table("", caption, ("", *heads, *(["Mean"] if len(found) > 1 else [])), tuple(rows))


def _mean(values: Sequence[float | None], outcome: str, datasets: int) -> list[str]:
    """The cell of the mean, of two datasets or more that all have the number."""
    known = [value for value in values if value is not None]
    if datasets < 2:
        return []
    if len(known) < datasets:
        return [MISSING]
    mean: Estimate = mean_over_datasets(known)
    if outcome != "share":
        return [change_text(mean, outcome)]
    if mean["low"] is None:
        return [f"{100 * (mean['value'] or 0.0):.0f} %"]
    return [percent({"share": mean["value"], "share_low": mean["low"], "share_high": mean["high"]})]


def summary_sentences(summary: MethodSummary) -> list[str]:
    """Each dataset's conclusion, and from five datasets on what their mean says."""
    said = [f"{dataset_name(dataset)}: {own.verdict['conclusion']}" for dataset, own in summary.by_dataset.items()]
    count = len(said)
    if count < FEWEST_DATASETS:
        few = f"Nothing follows for other datasets from {counted(count, 'dataset')}; from {FEWEST_DATASETS} on"
        return [*said, f"{few}, their mean has an interval."]
    for outcome in OUTCOMES:
        gains = [own.effects(outcome).get("gain", {}).get("value") for own in summary.by_dataset.values()]
        known = [gain for gain in gains if gain is not None]
        if len(known) == count:
            mean = amount(mean_over_datasets(known), outcome)
            said.append(f"Over {count} datasets {OUTCOME_NAMES[outcome]} changes by {mean} on average.")
    return said


def area_table(study: StudyResults) -> Table | None:
    """The areas under the curves of the perturbation test in percent, a row per model and map."""
    rows = []
    for model in study.models:
        areas = study.section("faithfulness", model["key"], "area")
        for kind in filter(areas.__contains__, MAPS):
            values = [
                areas[kind].get(direction, {}).get(target) for direction in _FIRST for target in ("predicted", "true")
            ]
            texts = [MISSING if value is None else f"{100 * value:.1f}" for value in values]
            rows.append(cells(label_of(model), MAP_NAMES[kind], *texts))
    caption = (
        "Area under each curve in percent. Most relevant first: the smaller, the better the map; least relevant first:"
        " the larger, the better."
    )
    columns = (
        "Model",
        "Map",
        *(f"{first} first, {target}" for first in _FIRST.values() for target in ("predicted", "true")),
    )
    return Table("", caption, columns, tuple(rows), words={1}) if rows else None
