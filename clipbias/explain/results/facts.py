"""What was studied, and how every model classified it."""

import dataclasses

import numpy as np

from clipbias.data.confusion import binomial_error

CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
TEXT_KINDS = ("sos", "prompt", "words", "category", "dot", "eos")


@dataclasses.dataclass(frozen=True)
class Missing:
    """Why a section has no result for a model, in one sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean over samples and its standard error, arrays of one shape."""

    mean: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class SampledAverage:
    """A mean over samples with its standard error, and a number of each sample `[n]`; NaN where it was not read."""

    mean: np.ndarray
    standard_error: np.ndarray
    each: np.ndarray

    @property
    def average(self) -> Average:
        return Average(self.mean, self.standard_error)


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The images that were explained.

    Attributes:
      images: how many could be read.
      template: zero-shot's text.
    """

    name: str
    split: str
    images: int
    class_names: tuple[str, ...]
    template: str


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """The frozen model and its geometry.

    Attributes:
      grid: patches along one side.
      tokens: of an image without prompts: the patches, and `[cls]` where there is one.
    """

    name: str
    fingerprint: str
    image_size: int
    patch_size: int
    grid: int
    patches: int
    tokens: int
    vision_layers: int
    vision_heads: int
    text_layers: int
    text_heads: int


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters; `shared` belong to no single tower."""

    total: int
    vision: int
    text: int
    shared: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model of the study.

    Attributes:
      key: unique in the study; "zero_shot" for the first.
      label: in figures.
      name: of all its seeds together.
      trained_on: its dataset, where that is known.
      vision_prompts, text_prompts: learned tokens, `V` and `T`.
      vision_depth, text_depth: layers with learned tokens of their own.
      changes_vision: whether its vision tower is another than CLIP's.
      correct, images: of the images that could be read.
      source: where its adapter lies.
    """

    key: str
    label: str
    name: str
    method: str
    options: dict[str, object]
    trained_on: str | None
    parameters: ParameterCount
    vision_prompts: int
    text_prompts: int
    vision_depth: int
    text_depth: int
    changes_vision: bool
    accuracy: float
    correct: int
    images: int
    source: str

    @property
    def has_prompts(self) -> bool:
        return bool(self.vision_prompts or self.text_prompts)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial, in points."""
        return binomial_error(self.accuracy, self.images)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class that every model gives each image, int32 `[n]`; -1 for an image that not all models saw.

    Attributes:
      models: by key.
    """

    labels: np.ndarray
    models: dict[str, np.ndarray]

    @property
    def zero_shot(self) -> np.ndarray:
        return next(iter(self.models.values()))

    def right(self, key: str) -> np.ndarray:
        """Which images a model gets right."""
        return self.models[key] == self.labels

    def changes(self, key: str) -> np.ndarray:
        """What a tuned model changes of every image, numbers of `CHANGES`; -1 for an image that was not read."""
        was_right = self.zero_shot == self.labels
        is_right = self.right(key)
        change = np.select([~was_right & is_right, was_right & ~is_right, was_right & is_right], [0, 1, 2], 3)
        return np.where((self.zero_shot < 0) | (self.models[key] < 0), -1, change)
