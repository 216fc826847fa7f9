"""Reading a binary's command line: which configuration, and what of it is changed."""

import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from clipbias.errors import ClipbiasError
from experiments import settings


def read_config(arguments: Sequence[str], default: str) -> tuple[str, list[str], ConfigDict]:
    """The configuration that a command line names, and the rest of that line.

    Args:
      arguments: of the process, the program's name first.
      default: the configuration where none is named.

    Returns:
      The file with its preset, the arguments without it, and the configuration as the file gives it. Of a setting that
      is given several times the last one counts, also where the library would join lists.

    Raises:
      ClipbiasError: there is no such configuration or setting.
    """
    given, rest = default, []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif found := re.fullmatch(r"--?config(?:=(.*))?", word, re.DOTALL):
            named = found[1] if found[1] is not None else next(words, "")
            if not named:
                raise ClipbiasError("--config names no file; give --config=FILE, such as --config=configs/train.py.")
            given = named
        else:
            rest.append(word)
    config = settings.load(given)
    settings.check_names([name for word in rest if (name := _setting(word))], config)
    return given, _last_of_each(rest, settings.flat(config)), config


def _setting(word: str) -> str:
    """The setting that an argument is about, or nothing."""
    found = re.match(r"--?(?:no)?config\.([^=\[]+)", word)
    return found[1] if found else ""


def _last_of_each(arguments: Sequence[str], values: dict) -> list[str]:
    """The arguments without those settings that a later one sets again, and each with its value in one word."""
    joined: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*_last_of_each(joined, values), word, *words]
        name = _setting(word)
        if name and "=" not in word and not isinstance(values.get(name), bool):
            value = next(words, None)
            word = word if value is None else f"{word}={value}"
        joined.append(word)
    latest = {_setting(word): place for place, word in enumerate(joined)}
    return [word for place, word in enumerate(joined) if not (name := _setting(word)) or latest[name] == place]
