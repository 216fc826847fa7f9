"""The verdict's numbers as tables: what carries the gain, what a constant keeps of it, and areas under curves."""

from collections.abc import Mapping

from clipbias.explain.results import EFFECTS, MAPS
from clipbias.explain.uncertainty import LEVEL, Estimate, excludes
from clipbias.explain.verdict_words import FORM_NAMES, NAMES, UNITS, amount, effect_names, outcome_with_gain, percent
from clipbias.report.published import dataset_name
from clipbias.report.study_figures import MAP_NAMES
from clipbias.report.study_results import StudyResults, by_reason, label_of
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_figures import BIASES, FORMS, OUTCOMES, learned_biases, verdict_of
from clipbias.report.verdict_summary import MethodSummary, percent_of

_FIRST = {"positive": "Most", "negative": "Least"}


def effects_table(study: StudyResults) -> Table | None:
    """Per model, each effect's share of the gain and its change of both outcomes, with intervals."""
    rows: list[tuple[str, ...]] = []
    shared: dict[str, list[str]] = {}
    for model in study.tuned:
        found = verdict_of(study, model).get("effects")
        if not found:
            continue
        outcome = outcome_with_gain(found)
        if outcome is not None:
            shared.setdefault(outcome, []).append(label_of(model))
        for name, long in effect_names(bool(model["vision_prompts"] or model["text_prompts"])).items():
            if name in found["log_likelihood"]["both"]:
                changes = {each: found[each]["both"][name] for each in NAMES}
                part = share_text(changes[outcome]) if outcome else MISSING
                texts = (change_text(changes[each], each) for each in NAMES)
                rows.append(cells(label_of(model), f"{name}: {long}", part, *texts))
        texts = (change_text(found[each]["both"]["gain"], each) for each in NAMES)
        rows.append(cells(label_of(model), "all: the gain", "100 %" if outcome else MISSING, *texts))
    if not rows:
        return None
    of = "; ".join(f"in {NAMES[outcome]} for {', '.join(labels)}" for outcome, labels in shared.items())
    caption = f"In brackets {100 * LEVEL:.0f} % intervals over images. " + (
        f"Shares are of the gain {of}." if of else "No gain is sure enough to be shared out."
    )
    columns = ("Model", "Effect", "Share of the gain", *(f"{OUTCOMES[each]} ({UNITS[each][0]})" for each in NAMES))
    return Table("", caption, columns, tuple(rows), words={1})


def change_text(number: Mapping[str, float | None], outcome: str) -> str:
    """A change with its interval, without its unit."""
    return amount(dict(number), outcome).replace(f" {UNITS[outcome][0]}", "", 1)


def share_text(number: Mapping[str, float | None]) -> str:
    """A share of the gain with its interval, or a dash where there is no gain to share out."""
    return MISSING if number.get("share") is None else percent(dict(number))


def why_no_effects(study: StudyResults) -> list[str]:
    """One sentence for each reason why models' gains could not be taken apart."""
    return by_reason((label_of(model), verdict_of(study, model).get("missing", "")) for model in study.tuned)


def kept_table(study: StudyResults) -> Table | None:
    """Per model, what each form of a constant keeps of the gain, and what learned biases gain."""
    rows: list[tuple[str, ...]] = []
    for model in study.tuned:
        kept = verdict_of(study, model).get("kept")
        if not kept:
            continue
        for form, name in {**FORM_NAMES, "tuned": f"{label_of(model)} itself"}.items():
            if form in kept["log_likelihood"] and form not in BIASES.get(model["method"], ()):
                parts = (
                    (MISSING,) * 2
                    if form == "tuned"
                    else (
                        share_text(kept[outcome][form]) if excludes(kept[outcome]["tuned"]) > 0 else MISSING
                        for outcome in NAMES
                    )
                )
                texts = (change_text(kept[outcome][form], outcome) for outcome in NAMES)
                rows.append(cells(label_of(model), name, *(x for pair in zip(parts, texts, strict=True) for x in pair)))
        for name, gains in learned_biases(study, model).items():
            texts = (x for outcome in NAMES for x in (MISSING, change_text(gains[outcome], outcome)))
            rows.append(cells(label_of(model), f"{name}, learned", *texts))
    caption = (
        f"Gains over the frozen model, and their shares of the method's gain, with {100 * LEVEL:.0f} % intervals over"
        " images; a dash where the gain itself is not surely above 0."
    )
    heads = (x for outcome in NAMES for x in ("Share", f"{OUTCOMES[outcome]} ({UNITS[outcome][0]})"))
    return Table("", caption, ("Model", "In its place", *heads), tuple(rows), words={1}) if rows else None


def why_nothing_kept(study: StudyResults) -> list[str]:
    """One sentence for each reason why no constant was measured of models."""
    asked = "amounts" in study.scalars["sections"]
    otherwise = "No constant was measured" + ("." if asked else "; --config.sections=amounts has it.")
    return by_reason(
        (label_of(model), study.section("amounts", model["key"]).get("missing") or otherwise)
        for model in study.tuned
        if verdict_of(study, model) and not verdict_of(study, model).get("kept")
    )


def summary_table(summary: MethodSummary) -> Table:
    """One method: gains, effects and shares, datasets across, their mean last."""
    datasets = list(summary.datasets)
    rows = []
    for outcome in ("accuracy", "log_likelihood"):
        for name in ("gain", *EFFECTS):
            numbers = summary.of(outcome, name)
            if numbers:
                texts = [change_text(numbers[dataset], outcome) for dataset in datasets]
                rows.append(cells(f"{name}, {UNITS[outcome][0]}", *texts, *_mean(summary.mean(outcome, name), outcome)))
    kept = {form: f"kept by {label}" for form, label in FORMS.items()}
    for name, text in {**{name: f"share of {name}" for name in EFFECTS}, **kept}.items():
        numbers = summary.of("log_likelihood", name)
        if numbers:
            mean = summary.mean_share("log_likelihood", name)
            last = [MISSING if mean is None else percent_of(mean)]
            texts = [share_text(numbers[dataset]) for dataset in datasets]
            rows.append(cells(text, *texts, *(last if len(datasets) > 1 else [])))
    heads = [
        dataset_name(name) + (f" ({seeds} seeds)" if seeds > 1 else "") for name, seeds in summary.datasets.items()
    ]
    caption = (
        f"In brackets {100 * LEVEL:.0f} % intervals: of a dataset over its images, of the mean over datasets, where"
        " each is one observation. Shares are of the gain in log-likelihood; a dash where that is not surely above 0."
    )
    return Table("", caption, ("", *heads, *(["Mean"] if len(datasets) > 1 else [])), tuple(rows))


def _mean(number: Estimate | None, outcome: str) -> list[str]:
    """Nothing for one dataset, which has no mean over datasets."""
    if number is None:
        return [MISSING]
    return [change_text(number, outcome)] if number["low"] is not None else []


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
