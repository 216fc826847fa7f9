"""What carries the gain, and what a replacement must know to keep it, for each method of a study."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.effects import KEPT, LOST, OUTCOME_NAMES, OUTCOMES, UNITS
from clipbias.explain.replacement_names import (
    ANOTHER_DATASET,
    ANOTHER_SEED,
    CONSTANTS,
    PLAIN,
    RANDOM,
    REPLACEMENT_FORMS,
    SHUFFLED,
)
from clipbias.explain.results import EFFECTS
from clipbias.explain.uncertainty import Estimate
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.methods import MethodResults
from clipbias.report.panels import Layout, bars, lines, panels
from clipbias.sentences import capitalize, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOWER_LABELS = {"both": "both towers", "vision": "vision tower alone", "text": "text tower alone"}
EFFECT_COLOURS = {"attention": style.SKY, "scale": style.ORANGE, "values": style.GREEN}
OUTCOMES_LONG = {outcome: f"{capitalize(name)} ({UNITS[outcome][0]})" for outcome, name in OUTCOME_NAMES.items()}
SHORT_FORM_NAMES = {
    "vector": "one vector",
    "kind": "two, by kind",
    "outliers": "three, outliers",
    "token": "one per position",
    **{form: f"map of rank {form.removeprefix('rank')}" for form in REPLACEMENT_FORMS if form not in CONSTANTS},
}
CONTROLS = {
    RANDOM: "random, same norms",
    SHUFFLED: "layers shuffled",
    ANOTHER_SEED: "another seed's",
    ANOTHER_DATASET: "another dataset's",
}
ITSELF = "the method itself"
_COLOURS = {**EFFECT_COLOURS, "all": style.TUNED, "random": style.GREY}
_HATCHES = {"both": "", "vision": "////", "text": "...."}
_OUTCOME_LOOKS: dict[str, dict[str, Any]] = {
    "accuracy": {"color": style.RED, "marker": "o"},
    "calibrated": {"color": style.BLUE, "marker": "s"},
}
_CONTROL_MARKS = {RANDOM: "x", SHUFFLED: "+", ANOTHER_SEED: "*", ANOTHER_DATASET: "d"}
# Shares that are drawn, in percent.
_LOWEST = -60.0
_HIGHEST = 180.0


def interval_columns(number: Estimate) -> dict[str, float | None]:
    """The columns of a number, its interval and its share of the gain."""
    columns = {"value": number.value, "low": number.low, "high": number.high}
    share = number.share
    return columns | {
        "share": None if share is None else share.value,
        "share_low": None if share is None else share.low,
        "share_high": None if share is None else share.high,
    }


def effects_figure(methods: Sequence[MethodResults]) -> CaptionedFigure | None:
    """The effects, the whole gain, interactions and the control, in both towers and in each alone."""
    rows = [row for method in methods for row in _effect_rows(method)]
    if not rows:
        return None
    counts = "; ".join(
        f"{method.facts.label}: {counted(len(method.test.outcomes.images), 'image')}"
        for method in methods
        if method.summary is not None and method.test is not None
    )
    frame = pd.DataFrame(rows)
    looks = {
        tower: {"hatch": hatch, "edgecolor": "white", "alpha": 1.0 if tower == "both" else 0.55}
        for tower, hatch in _HATCHES.items()
    }
    colours = {name: _COLOURS.get(name, style.PURPLE) for name in frame["quantity"]}

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        def text(row: pd.Series) -> str:
            return _signed(row) if row["tower"] == "both" else ""

        # The first effects, then the gain, then what they give together.
        ordered = part.iloc[part["quantity"].map(_order).argsort(kind="stable")]
        bars(
            axes,
            ordered,
            category="quantity",
            text=text,
            loose=("random",),
            hue="tower",
            looks=looks,
            colours=colours,
        )

    legend = {name: {"facecolor": style.GREY, **looks[tower]} for tower, name in TOWER_LABELS.items()}
    figure = panels(
        frame,
        draw,
        by=("method", "outcome"),
        legend=legend,
        layout=Layout(names=OUTCOMES_LONG, size=(3.7, 3.0), share_x=False, share_y=False),
    )
    return captioned("verdict_effects", figure, frame, counts=counts)


def _effect_rows(method: MethodResults) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if method.summary is None:
        return rows
    random = None if method.test is None else method.test.random
    for outcome in OUTCOMES:
        for tower, numbers in method.summary.towers.items():
            effects = numbers[outcome]
            named = {**effects.effects, "all": effects.gain, **effects.interactions}
            if random is not None and tower == "both":
                named["random"] = random.summary.towers["both"][outcome].gain
            place = {"method": method.facts.label, "outcome": outcome, "tower": tower}
            rows += [{**place, "quantity": name, **interval_columns(number)} for name, number in named.items()]
    return rows


def _order(quantity: str) -> int:
    return 9 if quantity == "random" else quantity.count("×") + (quantity not in EFFECTS)


def _signed(row: pd.Series) -> str:
    return f"{row['value']:+.{1 if row['outcome'] == 'accuracy' else 2}f}".replace("-", "−")


def replacement_curve_figure(methods: Sequence[MethodResults]) -> CaptionedFigure | None:
    """What is kept with each replacement form and lost without it, against the numbers that it stores."""
    frame = pd.DataFrame([row for each in methods for row in _form_rows(each)])
    if frame.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        places = _draw_forms(axes, part)
        _name_forms(axes, places)
        for level in (0, 100):
            axes.axhline(level, color="#4B5563", linewidth=0.7)
        for level in (50, 90):
            axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(_limits(part))

    legend: dict[str, Mapping[str, Any]] = {
        name: {**_OUTCOME_LOOKS[outcome], "linestyle": "-"} for outcome, name in OUTCOME_NAMES.items()
    }
    legend["maps of the token"] = {"color": style.GREY, "linestyle": "--"}
    legend |= {
        text: {"color": style.GREY, "marker": _CONTROL_MARKS[name], "linestyle": ""}
        for name, text in CONTROLS.items()
        if (frame["name"] == name).any()
    }
    figure = panels(
        frame,
        draw,
        by=("method", "what"),
        legend=legend,
        layout=Layout(
            names={KEPT: "kept with it", LOST: "lost without it"},
            size=(3.5, 3.6),
            y_label="% of the gain",
            share_x=False,
            share_y="row",
        ),
    )
    return captioned("replacement_curve", figure, frame)


def _form_rows(method: MethodResults) -> list[dict[str, Any]]:
    """Shares in percent of every form and control, of outcomes with a sure gain; and the method itself."""
    stored = {} if method.constants is None else method.constants.stored
    rows: list[dict[str, Any]] = []
    for what in (KEPT, LOST):
        for outcome in OUTCOMES:
            place = {"method": method.facts.label, "what": what, "outcome": outcome}
            shares = {name: method.share(outcome, what, name) for name in method.replacements(outcome, what)}
            known = {name: share for name, share in shares.items() if share is not None}
            for name, share in known.items():
                ends = {"value": share.value, "low": share.low, "high": share.high}
                percent = {end: 100 * (value or 0.0) for end, value in ends.items()}
                numbers = stored.get(name, stored[PLAIN])
                rows.append({**place, "name": name, "kind": _kind_of(name), "stored": numbers, **percent})
            if known:
                rows.append({**place, "name": ITSELF, "kind": "itself", "value": 100.0, "low": 100.0, "high": 100.0})
    return rows


def _kind_of(name: str) -> str:
    if name in CONTROLS:
        return "control"
    return "constant" if name in CONSTANTS else "map"


def _draw_forms(axes: "Axes", part: pd.DataFrame) -> dict[str, float]:
    """Draws all marks of a panel; returns where its forms stand on the axis."""
    style.log_scale(axes, "x")
    end = 2.2 * part["stored"].max()
    part = part.assign(stored=part["stored"].fillna(end))
    # Outcomes stand beside each other, and controls to the left of the constants that they are of.
    for shift, aside, (outcome, look) in zip((0.985, 1.015), (0.84, 0.91), _OUTCOME_LOOKS.items(), strict=True):
        marked = part[part["outcome"] == outcome]
        marked = marked.assign(stored=shift * marked["stored"])
        for kind, line in (("constant", "-"), ("map", "--")):
            marks = marked[marked["kind"] == kind]
            if len(marks):
                looks = {outcome: {**look, "linestyle": line, "ms": 4}}
                lines(axes, marks, x="stored", hue="outcome", looks=looks)
        itself = marked[marked["kind"] == "itself"]
        axes.plot(itself["stored"], itself["value"], **{**look, "linestyle": "", "ms": 6})
        for _, row in marked[marked["kind"] == "control"].iterrows():
            axes.plot(
                aside * row["stored"],
                row["value"],
                color=style.GREY,
                marker=_CONTROL_MARKS[row["name"]],
                ms=5,
                gid=row["name"],
            )
    known = part[part["kind"] != "control"].drop_duplicates("name")
    return dict(zip(known["name"], known["stored"], strict=True))


def _name_forms(axes: "Axes", places: Mapping[str, float]) -> None:
    """The name of each form and how many numbers it stores below the panel, moved apart where they would touch."""
    axes.set_xticks([])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    low, high = (np.log(edge) for edge in axes.get_xlim())
    width = style.size_inches(axes)[0] * 0.36
    spread = style.apart([np.log(place) for place in places.values()], (high - low) * 0.15 / width)
    for (name, place), label in zip(places.items(), np.exp(spread), strict=True):
        text = ITSELF if name == ITSELF else f"{SHORT_FORM_NAMES[name]} · {place:,.0f}"
        axes.annotate(
            text,
            xy=(place, 0),
            xytext=(label, -0.07),
            xycoords=("data", "axes fraction"),
            textcoords=("data", "axes fraction"),
            rotation=90,
            fontsize=6.5,
            ha="center",
            va="top",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#9CA3AF", "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
        )
    axes.set_xlim(np.exp(low), np.exp(high))


def _limits(part: pd.DataFrame) -> tuple[float, float]:
    ends = part[["low", "high"]].to_numpy(float)
    return max(_LOWEST, min(-5.0, ends.min() - 5)), min(_HIGHEST, max(108.0, ends.max() + 5))
