"""Tuned adapters for other programs: a checkpoint, a classifier head, a StableHLO program, an ONNX file, or PEFT's."""

from clipbias.export.folder import FORMS, export, natural_form
from clipbias.export.folding import fold
from clipbias.export.peft import read_peft

__all__ = ["FORMS", "export", "fold", "natural_form", "read_peft"]
