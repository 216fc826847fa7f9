"""The figure of the rank curve."""

from typing import Any

import pandas as pd

from clipbias.analysis.rank import BY_CLASS, RANK, RANKS, rank_of
from clipbias.analysis.replacement import Origin
from clipbias.analysis.results import StudyResults
from clipbias.intervals import in_points
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.pages import CaptionedFigure, captioned
from clipbias.report.panels import lines, panels

# Places on the x axis: by class, each rank, the ceiling.
RANK_PLACES = ("by class", *map(str, RANKS), "itself")
_LOOKS: dict[str, dict[str, Any]] = {
    BY_CLASS: {"label": "vectors for each class", "color": style.PURPLE, "marker": "v", "ms": 4.5},
    "map": {"label": "two vectors and a map, by rank", "color": style.RED, "marker": "o", "ms": 4.5},
    Origin.CEILING: {"label": "the method itself, fitted (ceiling)", "color": style.BLACK, "marker": "D", "ms": 4.5},
}


def rank_frame(study: StudyResults) -> pd.DataFrame:
    """Makes a row for each method, student and quantity; shares are in percent, the divergence in nats."""
    results = RANK.of(study)
    rows = []
    for method in results.methods if results else ():
        for row in method.rows:
            rank = rank_of(row)
            student, place = BY_CLASS, 0
            if rank is not None:
                student, place = "map", RANK_PLACES.index(str(rank))
            elif row.student.kind is Origin.CEILING:
                student, place = Origin.CEILING.value, len(RANK_PLACES) - 1
            quantities = {
                "changed predictions (%)": row.moved and in_points(row.moved),
                "share of the gain (%)": row.share and in_points(row.share),
                "KL (nats)": row.divergence,
            }
            facts = (method.name, student, rank, place)
            rows += [(*facts, quantity, *number.ends) for quantity, number in quantities.items() if number is not None]
    return pd.DataFrame(rows, columns=["method", "student", "rank", "place", "quantity", "value", "low", "high"])


def rank_figure(study: StudyResults) -> CaptionedFigure | None:
    """Draws changed predictions, share of the gain, and divergence against rank; `None` where nothing was fitted."""
    numbers = rank_frame(study)
    if numbers.empty:
        return None

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        lines(axes, part, x="place", hue="student", looks=_LOOKS)
        axes.set_xticks(range(len(RANK_PLACES)), RANK_PLACES, rotation=45, ha="right")

    figure = panels(numbers, draw, by=("quantity", "method"), size=(2.6, 1.7), x_label="rank of the map")
    results = RANK.of(study)
    message = " ".join(method.sentence for method in results.methods) if results else ""
    return captioned("rank_curve", figure, numbers, message=message)


DRAWING_OF_RANK = Drawing(section=RANK, place=25, figures=(rank_figure,), nothing="nothing was fitted")
