"""What stands in each method's place: a table, and a figure of two vectors per layer, by dataset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.errors import ClipbiasError
from clipbias.explain.results import PLAIN, Comparison, Kind, StudyResults
from clipbias.explain.uncertainty import Estimate
from clipbias.explain.wording import change, in_points
from clipbias.report import style
from clipbias.report.captions import CaptionedFigure, captioned
from clipbias.report.names import dataset_name, ordered_datasets
from clipbias.report.panels import Layout, level, panels, points
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict import share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = (
    "Method",
    "Stands for it",
    "Numbers",
    "Share of the gain",
    "Accuracy less the method's",
    "KL (nats)",
    "Same decisions",
    "Same moved decisions",
    "Less the ceiling's",
    "Cosine",
    "Conclusion",
)
_CAPTION = (
    "Forms that learned each method's outputs of training images without labels, on the study's images. The ceiling:"
    " the method itself, fitted in the same way from another start. Share: of the gain in calibrated log-likelihood; a"
    " dash where the gain is not surely above 0. Accuracy: the paired difference in points. KL: from the method to what"
    " stands for it. Moved: images whose decision tuning changed; less the ceiling's in points. Cosine: between what"
    " both change of the frozen model's image features. Mean: of what the method's blocks add, to which nothing was"
    " fitted. Retrained: the method on the same labelled images with another start, which says how reproducible a"
    " training is, and no more. On labels: the form's own method trained on the labels of the same images. In brackets"
    " 95 % intervals. A fit is a lower bound on what a form can do."
)
_WORDS = {
    Kind.FITTED: "{}",
    Kind.CEILING: "the ceiling: {}",
    Kind.MEAN: "the mean: {}",
    Kind.LABELS: "{}, on labels",
    Kind.RETRAINED: "{}, retrained",
}


def replacement_table(study: StudyResults) -> Table | None:
    """A row per method and what stands in its place; `None` where nothing was fitted."""
    methods = study.replacement.methods if study.replacement else ()
    rows = [_row(method.name, row) for method in methods for row in method.rows]
    return Table("", _CAPTION, _COLUMNS, tuple(rows), words={1, 10}) if rows else None


def _row(name: str, row: Comparison) -> tuple[str, ...]:
    return cells(
        name,
        _WORDS[row.student.kind].format(row.student.words),
        f"{row.student.numbers:,}",
        share_text(row.share),
        MISSING if row.difference is None else change(in_points(row.difference), "accuracy"),
        f"{row.divergence.value:.3g}",
        share_text(row.agreement),
        share_text(row.moved),
        MISSING if row.less_ceiling is None else change(in_points(row.less_ceiling), "accuracy"),
        MISSING if row.cosine is None else f"{row.cosine.value:.2f}",
        row.word.value if row.word else "",
    )


# What is drawn, by the start of its columns in the numbers.
_QUANTITIES = {"": "gain", "moved_": "moved decisions"}
# Percent: what lies outside is cut off.
_LIMITS = (-20.0, 140.0)
_ROW_HEIGHT = 0.36  # inches
_LOOKS: dict[str, dict[str, Any]] = {
    kind: {"label": label, "color": colour, "marker": marker, "ms": 4.5, "elinewidth": 1.2, "capsize": 0}
    for kind, label, colour, marker in (
        (Kind.CEILING, "the method itself, fitted (ceiling)", style.BLACK, "D"),
        (Kind.FITTED, "two vectors, fitted", style.RED, "o"),
        (Kind.LABELS, "two vectors, on labels", style.BLUE, "s"),
        (Kind.MEAN, "two vectors, the mean", style.PURPLE, "v"),
    )
}


def replacement_figure(studies: Sequence[StudyResults], methods: Sequence[str] = ()) -> CaptionedFigure | None:
    """Shares of the gain and of the moved decisions, a column of panels for each dataset, a line for each method.

    Args:
      studies: of one dataset each.
      methods: names of those that are drawn; without them all. The numbers have all.

    Returns:
      `None` where nothing was fitted.

    Raises:
      ClipbiasError: nothing was fitted to one of the methods.
    """
    numbers = replacement_numbers(studies)
    if numbers.empty:
        return None
    present = list(dict.fromkeys(numbers["method"]))
    if unknown := [name for name in methods if name not in present]:
        raise ClipbiasError(f"nothing was fitted to {unknown[0]!r}; there are {', '.join(present)}.")
    drawn = list(methods) or present
    of_form = numbers[numbers["method"].isin(drawn) & (numbers["form"].eq(PLAIN) | numbers["kind"].eq(Kind.CEILING))]
    ends = ("value", "low", "high")
    shown = pd.concat(
        [
            of_form[["method", "dataset", "kind"]].assign(
                quantity=quantity, **{end: of_form[f"{start}{end}"] for end in ends}
            )
            for start, quantity in _QUANTITIES.items()
        ]
    ).dropna(subset="value")
    if shown.empty:
        return None

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        for at in (0.0, 100.0):
            level(axes, at, "x")
        points(axes, part, category="method", hue="kind", looks=_LOOKS, places=drawn)
        axes.set_xlim(*_LIMITS)

    figure = panels(
        shown,
        draw,
        by=("quantity", "dataset"),
        layout=Layout(
            size=(2.0, 0.35 + _ROW_HEIGHT * len(drawn)),
            names={name: dataset_name(name) for name in shown["dataset"]},
            x_label="%",
        ),
    )
    return captioned("replacements", figure, numbers, message=replacement_message(of_form))


def replacement_numbers(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """A row for each method, dataset and what stands in its place; shares and differences in percent."""
    rows = []
    for dataset in ordered_datasets(study.dataset.name for study in studies):
        results = [study.replacement for study in studies if study.dataset.name == dataset]
        for method in [method for result in results if result is not None for method in result.methods]:
            rows += [{"method": method.name, "dataset": dataset, **_numbers(row)} for row in method.rows]
    return pd.DataFrame(rows)


def _numbers(row: Comparison) -> dict[str, object]:
    columns: dict[str, object] = {
        "models": row.models,
        "kind": row.student.kind.value,
        "form": row.student.form,
        "numbers": row.student.numbers,
        "divergence": row.divergence.value,
    }
    parts = {"": row.share, "moved_": row.moved, "less_ceiling_": row.less_ceiling, "difference_": row.difference}
    for start, share in parts.items():
        number = Estimate(np.nan) if share is None else in_points(share)
        ends = {"value": number.value, "low": number.low, "high": number.high}
        columns |= {f"{start}{name}": np.nan if end is None else end for name, end in ends.items()}
    return columns | {"word": row.word.value if row.word else ""}


def replacement_message(numbers: pd.DataFrame) -> str:
    """One sentence: what two vectors have of the gain and of the moved decisions, and what the ceiling has.

    Args:
      numbers: rows of `replacement_numbers`, of two vectors and ceilings alone.
    """
    fitted, ceiling = (numbers[numbers["kind"] == kind] for kind in (Kind.FITTED, Kind.CEILING))
    shares, moved, best = (
        _range(values) for values in (fitted["value"], fitted["moved_value"], ceiling["moved_value"])
    )
    if not moved:
        return "No decision was moved."
    gain = f"have {shares} of the gain in calibrated log-likelihood and " if shares else ""
    text = f"Two vectors per layer, fitted to each method's outputs, {gain}make {moved} of the decisions that it moved"
    return f"{text}; the method itself, fitted in the same way, makes {best}." if best else f"{text}."


def _range(values: "pd.Series[float]") -> str:
    """`62 to 78 %`, "" of no number."""
    low, high = (f"{end:.0f}" for end in (values.min(), values.max()))
    return "" if values.dropna().empty else f"{low} %" if low == high else f"{low} to {high} %"
