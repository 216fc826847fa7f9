"""Tuned adapters for other programs: a Hugging Face checkpoint, a classifier head, or a StableHLO program."""

from clipbias.export.folder import FORMS, export, natural_form
from clipbias.export.folding import fold

__all__ = ["FORMS", "export", "fold", "natural_form"]
