"""Descriptions of classes: texts that replace the template. `tuning.descriptions` makes a classifier of them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from clipbias.checks import shown
from clipbias.data.class_names import name_in_prompt
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, shorten, user_path


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """Texts of each class.

    Attributes:
      texts: by class name; a task takes those of its own classes, whose `_` counts as a space.
      source: what messages call them.
    """

    texts: Mapping[str, Sequence[str]]
    source: str = "the descriptions"

    def __post_init__(self) -> None:
        """Raises `ClipbiasError` for what are not texts by class name."""
        if not isinstance(self.texts, Mapping):
            raise ClipbiasError(f"{self.source} are {shown(self.texts)}; give a list of texts for each class name.")
        for name, texts in self.texts.items():
            if not isinstance(name, str):
                raise ClipbiasError(f"{self.source} name a class {shown(name)}, which is not a text.")
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise ClipbiasError(
                    f"{self.source} have {shown(texts)} for the class {shorten(name)!r}; give a list of texts."
                )
            if not texts or not all(text.strip() for text in texts):
                what = "an empty text" if texts else "no text"
                raise ClipbiasError(f"{self.source} have {what} for the class {shorten(name)!r}; write one.")

    @property
    def digest(self) -> str:
        """SHA-256 of the content, whatever its order of classes."""
        plain = {name: list(texts) for name, texts in self.texts.items()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def of(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """The texts of some classes, by their names. Raises `ClipbiasError` for a class without any."""
        known = {name_in_prompt(name): list(texts) for name, texts in self.texts.items()}
        for name in class_names:
            if name_in_prompt(name) not in known:
                raise ClipbiasError(f"{self.source} have no texts for the class {shorten(name)!r}; add some.")
        return {name: known[name_in_prompt(name)] for name in class_names}


def read_descriptions(path: str | os.PathLike) -> Descriptions:
    """Reads a JSON file of texts by class name. Raises `ClipbiasError` for a file that is not one."""
    texts = read_json(user_path(path), dict, what="a file of descriptions, texts by class name")
    return Descriptions(texts, source=f"the descriptions in {path}")


def as_descriptions(texts: Descriptions | Mapping[str, Sequence[str]] | None) -> Descriptions | None:
    """Descriptions from texts by class name, checked."""
    return texts if texts is None or isinstance(texts, Descriptions) else Descriptions(texts)
