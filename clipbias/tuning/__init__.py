"""Adaptation methods: one file each, all turning their learnables into one `Adaptation` of the frozen model."""

from clipbias.clip.adaptation import Adaptation
from clipbias.data.dataset import Descriptions, read_descriptions
from clipbias.tuning.features import Features, Samples, Sampling, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import (
    CONSTANTS,
    FeatureMethod,
    Kind,
    Learnables,
    Method,
    Preset,
    PromptText,
    TestTimeMethod,
    parameter_count,
)
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, make_method, resolve_method
from clipbias.tuning.task import Classifier, Task

__all__ = [
    "CONSTANTS",
    "METHODS",
    "Adaptation",
    "Classifier",
    "Descriptions",
    "FeatureMethod",
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
    "TestTimeMethod",
    "average_texts",
    "cross_entropy",
    "make_method",
    "parameter_count",
    "read_descriptions",
    "resolve_method",
    "unit_length",
]
