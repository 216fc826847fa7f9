"""Adaptation methods: one file each, all turning their learnables into one `Adaptation` of the frozen model."""

from clipbias.clip.adaptation import Adaptation
from clipbias.tuning.classifier import Classifier
from clipbias.tuning.descriptions import Descriptions, read_descriptions
from clipbias.tuning.features import Features, Samples, Sampling, average_texts, unit_length
from clipbias.tuning.learnables import parameter_count
from clipbias.tuning.method import CONSTANTS, Kind, Learnables, Method, Preset, PromptText
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, make_method
from clipbias.tuning.task import Task

__all__ = [
    "CONSTANTS",
    "METHODS",
    "Adaptation",
    "Classifier",
    "Descriptions",
    "Features",
    "Kind",
    "Learnables",
    "Method",
    "Preset",
    "PromptText",
    "Recipe",
    "Samples",
    "Sampling",
    "Task",
    "average_texts",
    "make_method",
    "parameter_count",
    "read_descriptions",
    "unit_length",
]
