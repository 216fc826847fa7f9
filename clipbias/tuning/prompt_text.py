"""The text that class names are put into."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PromptText:
    """The text a method puts each class name into.

    Attributes:
      templates: one or more, each with `{}` for the class name. Several are averaged as unit-length features.
      context_tokens: how many tokens `T` after SOS are context that the method may replace.
      position: where the class name stands among the context, "end", "middle" or "front"; or that of each template.
      spaces: characters of a name that become spaces there.
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
        """How many context tokens stand before the class name in each template."""
        count = self.context_tokens
        positions = (self.position,) * len(self.templates) if isinstance(self.position, str) else self.position
        return tuple({"end": count, "middle": count // 2, "front": 0}[position] for position in positions)
