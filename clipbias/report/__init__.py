"""Tables, figures and pages, drawn from arrays and result files alone; neither JAX nor the model is imported."""

from clipbias.report.frames import Sweep, read_sweep
from clipbias.report.overlay import Overlay, save_overlay
from clipbias.report.study_page import write_overview, write_report
from clipbias.report.sweep_figures import accuracy_figure, cost_figures, cost_tables
from clipbias.report.sweep_tables import make_accuracy_tables, make_tables, render_tables, write_tables
from clipbias.report.table import Table, render

__all__ = [
    "Overlay",
    "Sweep",
    "Table",
    "accuracy_figure",
    "cost_figures",
    "cost_tables",
    "make_accuracy_tables",
    "make_tables",
    "read_sweep",
    "render",
    "render_tables",
    "save_overlay",
    "write_overview",
    "write_report",
    "write_tables",
]
