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
class DatasetFacts:
    """The images that were explained."""

    name: str
    split: str
    images: int  # how many could be read
    class_names: tuple[str, ...]
    template: str  # zero-shot's text


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """The frozen model and its geometry."""

    name: str
    fingerprint: str
    image_size: int
    grid: int  # patches along one side
    patches: int
    tokens: int  # of an image without prompts: the patches, and `[cls]` where there is one
    vision_layers: int


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned parameters; `shared` belong to no single tower."""

    total: int
    vision: int
    text: int
    shared: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model of the study."""

    key: str  # unique in the study; "zero_shot" for the first
    label: str  # in figures
    name: str  # of all its seeds together
    method: str
    options: dict[str, object]
    trained_on: str | None  # its dataset, where that is known
    parameters: ParameterCount
    # vision_prompts, text_prompts: learned tokens, `V` and `T`.
    vision_prompts: int
    text_prompts: int
    vision_depth: int  # layers of the vision tower with learned tokens of their own
    changes_vision: bool  # whether its vision tower is another than CLIP's
    # accuracy, images: in percent, of the images that could be read.
    accuracy: float
    images: int
    source: str  # where its adapter lies

    @property
    def has_prompts(self) -> bool:
        return bool(self.vision_prompts or self.text_prompts)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial, in points."""
        return binomial_error(self.accuracy, self.images)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class that every model gives each image, int32 `[n]`; -1 for an image that not all models saw."""

    labels: np.ndarray
    models: dict[str, np.ndarray]  # by key

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
