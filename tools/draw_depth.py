"""Draws, over finished studies of models of several depths, what attention and tokens give alone, and a constant.

    python -m tools.draw_depth workdir/why workdir/why_8 workdir/why_12 --to=docs/images/depth.png

The arguments are folders of `experiments.explain` with the section `factorial`, one for each depth and dataset.
Relative attention can change only in later layers, so a model of few layers favours tokens. Methods that were studied
at a single depth are left out. Writes the picture, and its numbers beside it as CSV.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from absl import app

from clipbias.errors import ClipbiasError
from clipbias.explain.endpoint import TOKENS_ALONE
from clipbias.explain.results import StudyResults, load_results
from clipbias.explain.uncertainty import excludes
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.methods import ALL_ADDED, ATTENTION_ALONE, BEST_ADDED, MEAN_ADDED, study_methods
from clipbias.report.panels import Layout, level, lines, panels
from clipbias.report.published import dataset_name
from clipbias.report.replacement_figure import percent_columns
from experiments import common
from tools.study_pictures import save_picture, study_folders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTCOME = "calibrated"
# What is drawn: shares of the gain, and of all that is added to image tokens.
OF_GAIN = (ATTENTION_ALONE, TOKENS_ALONE)
OF_ADDED = (MEAN_ADDED, BEST_ADDED)
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": label, "color": colour, "marker": marker, "ms": 4}
    for name, label, colour, marker in (
        (ATTENTION_ALONE, "attention alone, of the gain", style.SKY, "o"),
        (TOKENS_ALONE, "tokens alone, of the gain", style.GREEN, "^"),
        (MEAN_ADDED, "the mean, of all that is added", style.PURPLE, "s"),
        (BEST_ADDED, "the best constant, of all that is added", style.RED, "v"),
    )
}


def depth_numbers(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """A row for each method, dataset, depth and quantity in percent, where its whole is surely above 0.

    Raises:
      ClipbiasError: no method's gain was taken apart at several depths of the model.
    """
    rows = []
    for study in studies:
        for method in study_methods(study):
            numbers = method.named(OUTCOME)
            place = {"method": method.facts.name, "dataset": study.dataset.name, "layers": study.clip.vision_layers}
            for whole, names in (("gain", OF_GAIN), (ALL_ADDED, OF_ADDED)):
                for name in names:
                    share = numbers[name].share if name in numbers and excludes(numbers[whole]) > 0 else None
                    if share is not None:
                        rows.append(
                            {**place, "seeds": len(method.facts.models), "quantity": name, **percent_columns(share)}
                        )
    numbers = pd.DataFrame(rows, columns=["method", "dataset", "layers", "seeds", "quantity", "value", "low", "high"])
    numbers = numbers[numbers.groupby(["method", "dataset"])["layers"].transform("nunique") > 1]
    if numbers.empty:
        raise ClipbiasError(
            "no method's gain was taken apart at several depths of the model; give studies of models with different "
            "numbers of layers, run with --config.sections=factorial."
        )
    return numbers.reset_index(drop=True)


def depth_figure(numbers: pd.DataFrame) -> CaptionedFigure:
    """A row of panels for each method and a column for each dataset, shares against the number of layers."""

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        for at in (0.0, 100.0):
            level(axes, at)
        lines(axes, part, x="layers", hue="quantity", looks=_LOOKS)
        axes.set_xticks(sorted(numbers["layers"].unique()))
        axes.set_ylim(-50, 150)

    names = {name: dataset_name(name) for name in dict.fromkeys(numbers["dataset"])}
    layout = Layout(names=names, x_label="layers of each tower", y_label="%", share_y="all")
    return captioned("depth", panels(numbers, draw, by=("method", "dataset"), layout=layout), numbers)


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    save_picture(depth_figure(depth_numbers([load_results(folder) for folder in study_folders(names, "draw_depth")])))
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
