"""The figure of the rank curve."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from clipbias.analysis.rank import BY_CLASS, RANK, RANKS, rank_of
from clipbias.analysis.replacement import MethodReplacements, Origin
from clipbias.analysis.results import StudyResults
from clipbias.intervals import in_points
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.names import dataset_name
from clipbias.report.pages import CaptionedFigure, captioned
from clipbias.report.panels import lines, panels

# Places on the x axis: by class, each rank, the ceiling.
RANK_PLACES = ("by class", *map(str, RANKS), "itself")
CHANGED = "changed predictions (%)"
_LOOKS: dict[str, dict[str, Any]] = {
    BY_CLASS: {"label": "vectors for each class", "color": style.PURPLE, "marker": "v", "ms": 4.5},
    "map": {"label": "two vectors and a map, by rank", "color": style.RED, "marker": "o", "ms": 4.5},
    Origin.CEILING: {"label": "the method itself, fitted (ceiling)", "color": style.BLACK, "marker": "D", "ms": 4.5},
}


def rank_frame(methods: Iterable[tuple[str, MethodReplacements]]) -> pd.DataFrame:
    """Makes a row for each student and quantity of methods on datasets; shares are in percent, the KL in nats."""
    rows = []
    for dataset, method in methods:
        for row in method.rows:
            rank = rank_of(row)
            student, place = BY_CLASS, 0
            if rank is not None:
                student, place = "map", RANK_PLACES.index(str(rank))
            elif row.student.kind is Origin.CEILING:
                student, place = Origin.CEILING.value, len(RANK_PLACES) - 1
            quantities = {
                CHANGED: row.moved and in_points(row.moved),
                "share of the gain (%)": row.share and in_points(row.share),
                "KL (nats)": row.divergence,
            }
            facts = (dataset, method.name, student, rank, place)
            rows += [(*facts, quantity, *number.ends) for quantity, number in quantities.items() if number is not None]
    columns = ["dataset", "method", "student", "rank", "place", "quantity", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def rank_figure(studies: Sequence[StudyResults]) -> CaptionedFigure | None:
    """Draws changed predictions, share of the gain, and divergence against rank; `None` where nothing was fitted.

    Several datasets stand side by side, with their changed predictions alone.
    """
    results = {study.dataset.name: RANK.of(study) for study in studies}
    methods = [(dataset, method) for dataset, of_study in results.items() if of_study for method in of_study.methods]
    numbers = rank_frame(methods)
    if numbers.empty:
        return None
    several = len(studies) > 1
    drawn = numbers[numbers["quantity"] == CHANGED] if several else numbers

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        lines(axes, part, x="place", hue="student", looks=_LOOKS)
        axes.set_xticks(range(len(RANK_PLACES)), RANK_PLACES, rotation=45, ha="right")

    figure = panels(
        drawn,
        draw,
        by=("dataset" if several else "quantity", "method"),
        size=(2.6, 1.7),
        names={name: dataset_name(name) for name in drawn["dataset"]},
        x_label="rank of the map",
    )
    message = " ".join((f"{dataset_name(name)}: " if several else "") + method.sentence for name, method in methods)
    return captioned("rank_curve", figure, numbers, message=message)


DRAWING_OF_RANK = Drawing(RANK, place=25, figures=(lambda study: rank_figure([study]),), nothing="nothing was fitted")
