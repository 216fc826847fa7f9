"""Methods that change neither tower; their texts use a choice of templates."""

import dataclasses
from typing import ClassVar

from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Kind, Learnables, Method, PromptText
from clipbias.tuning.prompts import choose_templates


@dataclasses.dataclass(frozen=True)
class FrozenTowers(Method):
    """A method that changes only the head.

    Attributes:
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
    """

    kind: ClassVar[Kind | None] = Kind.HEAD

    templates: str | tuple[str, ...] = "dataset"

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))
