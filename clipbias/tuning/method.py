"""What an adaptation method is: `init`, `adapt`, and the text it wants."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax

from clipbias.checks import Range, check_fields
from clipbias.clip import Adaptation, Clip

Learnables = Mapping[str, Any]

WORDS = "a photo of a"
# Prompt tokens per layer, and layers, that no method needs: more would only fill the memory.
MOST_TOKENS, MOST_LAYERS = 1000, 1000
Tokens = Annotated[int, Range(1, MOST_TOKENS)]
TokensOrNone = Annotated[int, Range(0, MOST_TOKENS)]
Depth = Annotated[int, Range(0, MOST_LAYERS)]


@dataclasses.dataclass(frozen=True)
class PromptText:
    """The text a method puts each class name into.

    Attributes:
      templates: one or more, each with `{}` for the class name. Several are averaged as unit-length features.
      context_tokens: how many tokens `T` after SOS are context that the method may replace.
      position: where the class name stands among the context: "end", "middle" or "front".
    """

    templates: tuple[str, ...]
    context_tokens: int = 0
    position: str = "end"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A name that a method goes by: the options behind it, and how tables and figures show it.

    Attributes:
      label: what is printed.
      options: those that differ from the method's defaults.
      order: position among the rows of a table, from the least to the most that is learned in both towers.
      colour: of the palette of `report.style`, or any colour of matplotlib.
      marker, line: marker and line style, as matplotlib spells them.
      stands_out: whether its line is thicker and above the others.
    """

    label: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    order: int = 1000
    colour: str = "black"
    marker: str = "X"
    line: str | tuple[int, tuple[float, ...]] = "-"
    stands_out: bool = False


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods: a frozen dataclass whose fields are the method's options.

    A method holds no arrays. `init` makes its learnables, a dictionary of arrays; `adapt` turns them into the
    `Adaptation` that the frozen model accepts. Keys that start with `text` or `vision` count as that tower's
    parameters. A file of this package whose class has `presets` is all that it takes to add a method.

    Attributes:
      presets: the names of a built-in method; of a method of one's own, the first says how it is shown.
      trains: whether there is anything to learn; `False` for a classifier that is ready once it is made.
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Holds the options against their annotations. Raises `ClipbiasError` for one that does not fit."""
        check_fields(self)

    @abc.abstractmethod
    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        """Initial learnables.

        Args:
          rng: a `jax.random.key`.
          clip: the frozen model: geometry, token embeddings, tokenizer.
          class_names: the `C` classes as given, before `_` becomes a space.
        """

    @abc.abstractmethod
    def adapt(self, learnables: Learnables) -> Adaptation:
        """Learnables to additions. Pure: it is traced, differentiated and vectorised."""

    def text(self, template: str, clip: Clip) -> PromptText:
        """The prompt text, given the dataset's own `template`. By default "a photo of a {}." whatever the dataset."""
        return PromptText((f"{WORDS} {{}}.",))
