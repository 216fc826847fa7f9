"""Prompt texts around class names."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A prompt text: one or more templates for class names.

    Attributes:
      templates: each with `{}` for the class name. The unit-length features of several templates are averaged.
      context_tokens: number of context tokens `T` after SOS, which the method may replace.
      position: position of the class name in the context, "end", "middle" or "front"; or one for each template.
      spaces: characters of a class name that become spaces.
    """

    templates: tuple[str, ...]
    context_tokens: int = 0
    position: str | tuple[str, ...] = "end"
    spaces: str = "_"

    def __str__(self) -> str:
        count = len(self.templates)
        return repr(self.templates[0]) + (f", … ({count} templates)" if count > 1 else "")

    @property
    def before(self) -> tuple[int, ...]:
        """Number of context tokens before the class name, for each template."""
        count = self.context_tokens
        positions = (self.position,) * len(self.templates) if isinstance(self.position, str) else self.position
        return tuple({"end": count, "middle": count // 2, "front": 0}[position] for position in positions)
