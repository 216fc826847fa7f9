"""Tables, figures and pages, drawn from arrays and result files alone; neither JAX nor the model is imported."""

from clipbias.report.accuracy import accuracy_figure
from clipbias.report.summary import Summary, summarize
from clipbias.report.table import to_html, to_latex, to_markdown, to_text

__all__ = ["Summary", "accuracy_figure", "summarize", "to_html", "to_latex", "to_markdown", "to_text"]
