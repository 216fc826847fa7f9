"""Export of tuned models: checkpoints, classifier heads, StableHLO programs, ONNX files, PEFT adapters."""

from clipbias.clip.adaptation import fold
from clipbias.export.folder import FORMS, export, natural_form
from clipbias.export.peft import read_peft

__all__ = ["FORMS", "export", "fold", "natural_form", "read_peft"]
