"""Tables, figures and pages, drawn from arrays and result files alone; neither JAX nor the model is imported."""

from clipbias.report.frames import read_sweep
from clipbias.report.study_page import write_overview, write_report
from clipbias.report.sweep_figures import accuracy_figure, cost_figures, cost_tables
from clipbias.report.sweep_tables import make_tables, render_tables
from clipbias.report.table import render

__all__ = [
    "accuracy_figure",
    "cost_figures",
    "cost_tables",
    "make_tables",
    "read_sweep",
    "render",
    "render_tables",
    "write_overview",
    "write_report",
]
