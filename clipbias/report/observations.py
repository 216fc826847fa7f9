"""The paper's observations as a table: a row for each claim, a column for each method, and whether it holds."""

from collections.abc import Sequence

import pandas as pd

from clipbias.explain.results import Observation, StudyResults
from clipbias.explain.uncertainty import Estimate
from clipbias.report.errors import WITHIN, difference_error
from clipbias.report.frames import ACCURACY, Sweep
from clipbias.report.names import dataset_name, method_name
from clipbias.report.table import MISSING, Table, cells

# Methods of as many parameters, one vector per layer and tower.
BIAS = "bias"
PROMPTS = "ivlp_matched"
_CAPTION = (
    "Claims of the paper (arXiv 2312.11570). In brackets 95 % intervals over images, of text attention over classes,"
    " and over seeds where there are several. A claim holds if the whole interval lies in its range, does not if all"
    " of it lies outside, else it is undecided. Falls: below 0; rises: above 0; looks at: above 50 %; unchanged: within"
    " 10 %; identical: within 0.1 %. Hypotheses of Sec. 4.2.1: by the labels of the verdict. Changes are tuned less"
    " zero-shot; attention is a mean over layers and heads; corrected images are those that tuning gets right anew."
)


def observations_table(study: StudyResults) -> Table | None:
    """A row for each claim and method; `None` where no observation was measured."""
    rows = study.observations.rows if study.observations else ()
    if not rows:
        return None
    lines = [
        cells(f"{row.source}: {row.claim}", row.method, row.statistic, number_text(row), row.outcome.value)
        for row in rows
    ]
    heads = ("Claim", "Model", "Statistic", "Value", "It")
    return Table("", _CAPTION, heads, tuple(lines), words={1, 2, 4})


def number_text(row: Observation) -> str:
    """`+5.3 (+3.1 to +7.5) points` of a change, `74 (68 to 79) %`, or a dash."""
    if row.number is None:
        return MISSING
    digits, sign = {"points": (1, "+"), "%": (1, ""), "": (2, "")}[row.unit]

    def text(value: float) -> str:
        return f"{round(value, digits) + 0.0:{sign}.{digits}f}"

    number = text(row.number.value)
    if row.number.low is not None and row.number.high is not None:
        number += f" ({text(row.number.low)} to {text(row.number.high)})"
    return f"{number} {row.unit}".rstrip()


def bias_above_prompts(sweep: Sweep) -> tuple[Observation, ...]:
    """Table 1's observation, of each dataset: at equal numbers a bias is more accurate than prompts.

    Args:
      sweep: with the methods "bias" and "ivlp_matched", whose most shots count.

    Returns:
      The difference in points with its interval: test images compared in pairs, and seeds (`report.errors`). Empty
      where either method is missing.
    """
    from clipbias.explain.observations import decide  # not at import: it brings JAX, which drawing does without

    rows = []
    for dataset in sweep.datasets:
        bias, prompts = (sweep.lines.get((ACCURACY, method, dataset, sweep.shots[-1])) for method in (BIAS, PROMPTS))
        if bias is None or prompts is None:
            continue
        difference = float(bias["mean"] - prompts["mean"])
        half = WITHIN * difference_error(bias, prompts)
        number = Estimate(difference, difference - half, difference + half)
        rows.append(
            Observation(
                source="Table 1",
                claim="A bias is better than prompts at equal numbers",
                method=f"{method_name(BIAS)} and {method_name(PROMPTS)}, {dataset_name(dataset)}",
                statistic="difference of accuracies",
                unit="points",
                number=number,
                samples=int(bias["images"]),
                outcome=decide(number, 0, float("inf")),
            )
        )
    return tuple(rows)


def observation_frame(rows: Sequence[Observation]) -> pd.DataFrame:
    """A line for each observation, with the ends of its interval: what CSV files hold."""
    columns = ("source", "claim", "method", "statistic", "unit", "value", "low", "high", "samples", "outcome")
    lines = []
    for row in rows:
        number = (None,) * 3 if row.number is None else (row.number.value, row.number.low, row.number.high)
        lines.append(
            (row.source, row.claim, row.method, row.statistic, row.unit, *number, row.samples, row.outcome.value)
        )
    return pd.DataFrame(lines, columns=columns)
