"""One way to classify in a study."""

import dataclasses
import functools
import hashlib
import json

import jax
import numpy as np

from clipbias.clip.precision import named
from clipbias.explain.scope import passes
from clipbias.explain.tokens import prompt_counts, prompt_depths
from clipbias.tuning import Learnables, Task
from clipbias.tuning.method import crops_of


@dataclasses.dataclass(frozen=True)
class Model:
    """One way to classify.

    Attributes:
      key: a short name without "/", unique in the study; "zero_shot" for the first.
      label: the name in figures.
      method: the method's name.
      task: bound to the dataset's classes.
      learnables: its tuned arrays.
      source: where they come from.
      seed: what its training started from, for what stood in its prompts' places before.
      name: the label of all its seeds together; `None` takes the label.
      trained_on: its training set, where that is known.
      few_shot_split: names its training images, where they are known.
    """

    key: str
    label: str
    method: str
    task: Task
    learnables: Learnables
    source: str = ""
    seed: int = 0
    name: str | None = None
    trained_on: str | None = None
    few_shot_split: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Of all that its numbers depend on, but for the frozen weights."""
        facts = [self.method, repr(self.options), self.task.texts, named(self.task.classifier.dtype), self.seed]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(self.learnables), key=lambda x: str(x[0])):
            digest.update(str(path).encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    @property
    def options(self) -> dict[str, object]:
        """Of its method."""
        return self.task.options()

    @property
    def prompts(self) -> tuple[int, int]:
        """`(V, T)`: learned tokens in the vision and in the text tower."""
        return prompt_counts(self.task, self.learnables)

    @property
    def depths(self) -> tuple[int, int]:
        """How many layers of the vision and of the text tower have learned tokens of their own."""
        return prompt_depths(self.task, self.learnables)

    @property
    def texts(self) -> int:
        """How many texts every class has, `S`, whose features the method reads together."""
        return self.task.classifier.templates

    @property
    def passes(self) -> int:
        """How many passes over an image it makes, each with vision prompts of its own."""
        return passes(self.task)

    @property
    def crops(self) -> int:
        """How many crops of each image it learns of besides the image itself."""
        return crops_of(self.task.method)

    @property
    def has_own_head(self) -> bool:
        """Whether its logits are something else than scaled cosines."""
        return self.task.method.overrides("logits")
