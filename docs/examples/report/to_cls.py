"""The figure of attention to `[cls]`."""

import pandas as pd

from clipbias.analysis.results import StudyResults
from clipbias.analysis.to_cls import TO_CLS
from clipbias.report import style
from clipbias.report.drawings import Drawing
from clipbias.report.pages import CaptionedFigure
from clipbias.report.panels import joined, lines, panels, tidy


def to_cls_figure(study: StudyResults) -> CaptionedFigure | None:
    """A panel for each model, by layer."""
    results = TO_CLS.present(study)
    frame = joined(tidy(result.attention, "layer", model=key) for key, result in results.items())
    if frame.empty:
        return None

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        lines(axes, part, x="layer", looks={"": {"color": style.TUNED}})

    figure = panels(
        frame, draw, by=("", "model"), names=study.labels, x_label="layer", y_label="attention", legend=False
    )
    caption = "Attention of patches to [cls], mean over heads and patches. Whiskers: 95 % intervals over images."
    return CaptionedFigure("to_cls", TO_CLS.title, caption, figure, frame)


TO_CLS_DRAWING = Drawing(TO_CLS, place=85, figures=(to_cls_figure,), nothing="no model sees an image")
