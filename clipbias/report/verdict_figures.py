"""What carries the gain, and what a constant keeps of it, for each model of a study."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.explain.uncertainty import excludes
from clipbias.explain.verdict_words import NAMES, UNITS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.panels import bars, panels
from clipbias.report.study_results import StudyResults, counted, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOWERS = {"both": "both towers", "vision": "vision tower alone", "text": "text tower alone"}
EFFECT_COLOURS = {"attention": style.SKY, "scale": style.ORANGE, "values": style.GREEN}
FORMS = {"vector": "one vector", "kind": "two, by kind of token", "token": "one per token"}
OUTCOMES = {"log_likelihood": "Log-likelihood", "accuracy": "Accuracy"}
# Methods that learn what constants are measured to be, and the forms that are these by construction.
BIASES: dict[str, tuple[str, ...]] = {"bias": ("vector", "kind", "token"), "bias_by_kind": ("kind", "token")}
_COLOURS = {**EFFECT_COLOURS, "all": style.TUNED, "random": style.GREY}
_HATCHES = {"both": "", "vision": "////", "text": "...."}
_NUMBER = ("value", "low", "high", "share", "share_low", "share_high")


def verdict_of(study: StudyResults, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model's verdict, empty where the study has none."""
    return study.section("verdict", model["key"])


def effects_figure(study: StudyResults) -> CaptionedFigure | None:
    """The three effects, the whole gain and the control, in both towers and in each alone."""
    rows, counts = [], []
    for model in study.tuned:
        found = verdict_of(study, model)
        if not found.get("effects"):
            continue
        counts.append(f"{label_of(model)}: {counted(found['images'], 'image')}")
        for outcome in NAMES:
            for tower, numbers in found["effects"][outcome].items():
                control = (found.get("random") or {}).get(outcome, {}).get(tower, {}).get("gain")
                named = {**numbers, **({"random": control} if control and tower == "both" else {})}
                for effect in ("reference", *EFFECT_COLOURS, "gain", "random"):
                    if effect in named:
                        rows.append(_row(model, named[effect], outcome=outcome, tower=tower, effect=effect))
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    drawn = frame[frame["effect"] != "reference"].replace({"effect": {"gain": "all"}})
    looks = {
        tower: {"hatch": hatch, "edgecolor": "white", "alpha": 1.0 if tower == "both" else 0.55}
        for tower, hatch in _HATCHES.items()
    }

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        def text(row: pd.Series) -> str:
            return _signed(row) if row["tower"] == "both" else ""

        bars(axes, part, category="effect", hue="tower", looks=looks, text=text, loose=("random",), colours=_COLOURS)

    legend = {name: {"facecolor": style.GREY, **looks[tower]} for tower, name in TOWERS.items()}
    figure = panels(
        drawn, draw, by=("model", "outcome"), names=_names(study), size=(3.9, 2.2), legend=legend, **_LAYOUT
    )
    return captioned("verdict_effects", figure, frame, counts="; ".join(counts))


def kept_figure(study: StudyResults) -> CaptionedFigure | None:
    """Gains of constants in the method's place beside the method's own, and what learned biases gain."""
    rows = []
    for model in study.tuned:
        kept, same = verdict_of(study, model).get("kept"), BIASES.get(model["method"], ())
        if not kept or len(same) == len(FORMS):
            continue
        for outcome in NAMES:
            numbers = {form: number for form, number in kept[outcome].items() if form not in same}
            learned = {f"{name}, learned": gains[outcome] for name, gains in learned_biases(study, model).items()}
            sure = excludes(dict(numbers["tuned"])) > 0
            for form, number in {**numbers, **learned}.items():
                rows.append(_row(model, number, outcome=outcome, form=form) | {"shown": sure and form in FORMS})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    colours = {**dict.fromkeys(FORMS.values(), style.SKY), "the method": style.TUNED}
    drawn = frame.replace({"form": {**FORMS, "tuned": "the method"}})

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        looks = {form: {"color": colours.get(form, style.PURPLE)} for form in part["form"]}

        def text(row: pd.Series) -> str:
            return f"{_signed(row)}  {100 * row['share']:.0f} %" if row["shown"] else _signed(row)

        bars(axes, part, category="form", looks=looks, text=text)

    figure = panels(drawn, draw, by=("model", "outcome"), names=_names(study), size=(3.9, 1.5), **_LAYOUT)
    return captioned("verdict_kept", figure, frame.drop(columns="shown"))


_LAYOUT: dict[str, Any] = {"share_x": False, "share_y": False}


def _row(model: Mapping[str, Any], number: Mapping[str, Any], **place: str) -> dict[str, Any]:
    return {"model": model["key"], **place, **{name: number.get(name) for name in _NUMBER}}


def _signed(row: pd.Series) -> str:
    return f"{row['value']:+.{UNITS[row['outcome']][1] if row['outcome'] == 'accuracy' else 2}f}".replace("-", "−")


def _names(study: StudyResults) -> dict[str, str]:
    outcomes = {outcome: f"{OUTCOMES[outcome]} ({UNITS[outcome][0]})" for outcome in NAMES}
    return {model["key"]: label_of(model) for model in study.models} | outcomes


def learned_biases(study: StudyResults, model: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float | None]]]:
    """By label and outcome, the gains of the other models of the study that learned a bias."""
    return {
        label_of(other): {outcome: effects[outcome]["both"]["gain"] for outcome in NAMES}
        for other in study.tuned
        if other["key"] != model["key"] and other["method"] in BIASES
        if (effects := verdict_of(study, other).get("effects"))
    }
