"""Methods that change neither tower; their texts use a choice of templates."""

import dataclasses
from typing import ClassVar

from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.preset import Kind
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.templates import choose_templates


@dataclasses.dataclass(frozen=True)
class FrozenTowers(Method):
    """A method that changes only the head.

    Attributes:
      templates: a choice of `tuning.templates` ("dataset" for the dataset's own), or templates with `{}`.
    """

    kind: ClassVar[Kind | None] = Kind.HEAD

    templates: str | tuple[str, ...] = "dataset"

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))
