"""What carries the gain, for each method of a study."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.explain.effects import OUTCOME_NAMES, OUTCOMES, UNITS
from clipbias.explain.results import EFFECTS
from clipbias.explain.uncertainty import Estimate
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.methods import MethodResults
from clipbias.report.panels import Layout, bars, panels
from clipbias.sentences import capitalize, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOWER_LABELS = {"both": "both towers", "vision": "vision tower alone", "text": "text tower alone"}
EFFECT_COLOURS = {"attention": style.SKY, "scale": style.ORANGE, "values": style.GREEN}
OUTCOMES_LONG = {outcome: f"{capitalize(name)} ({UNITS[outcome][0]})" for outcome, name in OUTCOME_NAMES.items()}
_COLOURS = {**EFFECT_COLOURS, "all": style.TUNED, "random": style.GREY}
_HATCHES = {"both": "", "vision": "////", "text": "...."}


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
