"""What can stand in a method's place against the numbers that it stores, over datasets, and the same as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.errors import ClipbiasError
from clipbias.explain.replacement import FITTED, MEAN, RETRAINED, UNTAUGHT
from clipbias.explain.replacement_pooled import NOT_INFERIOR, PooledForm, PooledMethod, pool_replacements
from clipbias.explain.results import StudyResults
from clipbias.explain.uncertainty import Estimate
from clipbias.explain.wording import change, in_points
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.panels import Layout, level, lines, panels
from clipbias.report.published import dataset_name, ordered_datasets
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_tables import share_text
from clipbias.sentences import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The form that the message is about: a constant, of which the mean is one.
MESSAGE_FORM = "kind"
# Percent of the gain: what lies outside is cut off.
LIMITS = (-50.0, 150.0)
_LOOKS: dict[str, dict[str, Any]] = {
    kind: {"label": label, "color": colour, "marker": marker, "ms": 4, "elinewidth": 1.0, "capsize": 0}
    for kind, label, colour, marker in (
        (FITTED, "fitted", style.RED, "o"),
        (UNTAUGHT, "on labels", style.BLUE, "s"),
        (MEAN, "mean", style.PURPLE, "v"),
        (RETRAINED, "retrained", style.BLACK, "*"),
    )
}
_COLUMNS = (
    "Method",
    "Models",
    "Stands for it",
    "Numbers",
    "Share of the gain",
    "Accuracy less the models'",
    "Not inferior within 1 point",
    "Same moved decisions",
    "Less retraining's",
    "Less labels'",
    "Conclusion",
)


def replacement_figure(studies: Sequence[StudyResults], methods: Sequence[str] = ()) -> CaptionedFigure | None:
    """Shares of the gain in calibrated log-likelihood, a row of panels for each method and a column for each dataset.

    Args:
      studies: of one dataset each.
      methods: names of those that are drawn; without them those with the most models. The numbers have all.

    Returns:
      `None` where nothing was fitted, or no gain is sure.

    Raises:
      ClipbiasError: nothing was fitted to one of the methods.
    """
    numbers = replacement_numbers(studies)
    if numbers.empty:
        return None
    by_method = numbers.drop_duplicates(["method", "dataset"]).groupby("method", sort=False)
    models = {str(name): int(count) for name, count in by_method["models"].sum().items()}
    if unknown := [name for name in methods if name not in models]:
        raise ClipbiasError(f"nothing was fitted to {unknown[0]!r}; there are {', '.join(models)}.")
    drawn = list(methods) or [name for name, count in models.items() if count == max(models.values())]
    shown = pd.concat([numbers[numbers["method"] == name] for name in drawn]).dropna(subset="value")
    if shown.empty:
        return None
    from matplotlib.ticker import LogLocator

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        for at in (0.0, 100.0):
            level(axes, at)
        lines(axes, part, x="numbers", hue="kind", looks=_LOOKS)
        style.log_scale(axes, "x")
        axes.xaxis.set_major_locator(LogLocator())  # one tick in a decade: panels are narrow
        axes.set_ylim(*LIMITS)

    datasets = list(dict.fromkeys(shown["dataset"]))
    figure = panels(
        shown,
        draw,
        by=("method", "dataset"),
        layout=Layout(
            size=(3.9 / len(datasets), 1.35),  # legible where a page is 400 pixels wide
            names={name: dataset_name(name) for name in datasets},
            x_label="numbers stored",
            y_label="% of gain",
            share_y="all",
        ),
    )
    return captioned(
        "replacements",
        figure,
        numbers,
        message=replacement_message(numbers[numbers["method"].isin(drawn)]),
        counts=", ".join(f"{name}: {counted(models[name], 'model')}" for name in drawn),
    )


def replacement_numbers(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """A row for each method, dataset and what stands in its place; shares of the gain in percent."""
    rows = []
    for dataset in ordered_datasets(study.dataset.name for study in studies):
        for method in pool_replacements([study for study in studies if study.dataset.name == dataset]):
            for way in method.ways:
                place = {"method": method.name, "dataset": dataset, "models": way.teachers}
                place |= {"kind": way.kind, "form": way.form, "numbers": way.numbers}
                numbers = {"": way.share, "moved_": way.moved, "difference_": way.difference}
                rows.append(
                    place | {k: v for start, each in numbers.items() for k, v in percent_columns(each, start).items()}
                )
    return pd.DataFrame(rows)


def percent_columns(share: Estimate | None, start: str = "") -> dict[str, float | None]:
    """The columns of a share in percent and its interval, whose names begin with `start`."""
    number = Estimate(np.nan) if share is None else in_points(share)
    return {f"{start}value": number.value, f"{start}low": number.low, f"{start}high": number.high}


def replacement_message(numbers: pd.DataFrame) -> str:
    """One sentence: what two vectors per layer keep of the gain if they are fitted, trained on labels, or the mean.

    Args:
      numbers: rows of `replacement_numbers`.
    """
    of_form = numbers[numbers["form"] == MESSAGE_FORM].dropna(subset="value")
    medians = of_form.groupby("kind")["value"].median()
    if FITTED not in medians:
        return "No gain is sure, so there is none to share out."
    parts = [
        f"{medians[kind]:.0f} % {words}"
        for kind, words in (
            (FITTED, "if they are fitted to the tuned model's predictions"),
            (UNTAUGHT, "if they are trained on labels"),
            (MEAN, "as the mean of what its blocks add"),
        )
        if kind in medians
    ]
    count = int((of_form["kind"] == FITTED).sum())
    over = f" Medians over {count} pairs of method and dataset." if count > 1 else ""
    return f"Of the gain in calibrated log-likelihood two vectors per layer keep {', '.join(parts)}.{over}"


def pooled_table(methods: Sequence[PooledMethod]) -> Table:
    """A row per method and fitted form, over seeds and datasets together."""
    rows = [_pooled_row(method, form) for method in methods for form in method.forms.values()]
    caption = (
        "What fitted forms do in each method's place, over seeds and images crossed within a dataset, with datasets as"
        " strata that count alike. Share: of the gain in calibrated log-likelihood. Accuracy: in points. Not inferior:"
        f" the interval of the difference lies above {-100 * NOT_INFERIOR:.0f} point. Less retraining's, less labels':"
        " points of agreement on moved decisions. In brackets 95 % intervals."
    )
    return Table("", caption, _COLUMNS, tuple(rows), words={2, 6, 10})


def _pooled_row(method: PooledMethod, form: PooledForm) -> tuple[str, ...]:
    return cells(
        method.name,
        str(form.way.teachers),
        form.words,
        f"{form.way.numbers:,.0f}",
        share_text(form.way.share),
        change(in_points(form.way.difference), "accuracy"),
        "yes" if form.not_inferior else "not shown",
        share_text(form.way.moved),
        *map(_less, (form.beside_retraining, form.beside_untaught)),
        form.conclusion,
    )


def _less(agreement: Estimate | None) -> str:
    return MISSING if agreement is None else change(in_points(agreement), "accuracy")
