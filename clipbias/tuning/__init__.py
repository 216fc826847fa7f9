"""Adaptation methods: one file each, all turning their learnables into one `Adaptation` of the frozen model."""

from clipbias.clip.adaptation import Adaptation
from clipbias.tuning.classifier import Classifier, cross_entropy
from clipbias.tuning.method import Learnables, Method, Preset, PromptText
from clipbias.tuning.registry import METHODS, make_method
from clipbias.tuning.task import Task, parameter_count

__all__ = [
    "METHODS",
    "Adaptation",
    "Classifier",
    "Learnables",
    "Method",
    "Preset",
    "PromptText",
    "Task",
    "cross_entropy",
    "make_method",
    "parameter_count",
]
