"""Tables, figures and pages, drawn from arrays and result files alone; neither JAX nor the model is imported."""

from clipbias.report.accuracy import accuracy_figure
from clipbias.report.accuracy_tables import to_html, to_latex, to_markdown, to_text
from clipbias.report.costs import cost_figures, cost_tables
from clipbias.report.interpretation import write_interpretation
from clipbias.report.overlay import Overlay, save_overlay
from clipbias.report.overview import write_overview
from clipbias.report.study_page import write_report
from clipbias.report.summary import Summary, summarize

__all__ = [
    "Overlay",
    "Summary",
    "accuracy_figure",
    "cost_figures",
    "cost_tables",
    "save_overlay",
    "summarize",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_interpretation",
    "write_overview",
    "write_report",
]
