"""Adaptation methods: one file each, all turning their learnables into one `Adaptation` of the frozen model."""

from clipbias.clip.adaptation import Adaptation
from clipbias.data.descriptions import Descriptions, read_descriptions
from clipbias.tuning.classifier import Classifier
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.features import Features, Samples, Sampling, average_texts, unit_length
from clipbias.tuning.learnables import parameter_count
from clipbias.tuning.method import CONSTANTS, Learnables, Method
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, make_method, resolve_method
from clipbias.tuning.task import Task
from clipbias.tuning.test_time_method import TestTimeMethod

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
    "make_method",
    "parameter_count",
    "read_descriptions",
    "resolve_method",
    "unit_length",
]
