"""Command line of a binary: flags, configuration file, help."""

import ast
import functools
import glob
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from clipbias.checks import check_value, meant, plain_type
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.settings import Setting, fields_of, flatten
from clipbias.terminal import printable
from experiments.help_page import help_page

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is written.")
CONFIGS = Path(str(configs.__file__)).parent
_SETTING = re.compile(r"--?config\.([^=]+)")
# `config_flags` cannot set None.
_UNSET = re.compile(r"--?config\.([^=]+)=None")
# Messages of `config_flags`, and of Python, for a setting below a name that has no settings.
_NO_SETTING = re.compile(r"^'([\w.]+)'$|lookup: ([\w.]+)|^Override ([\w.]+) can not|object has no attribute '(\w+)'")
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def parse(words: Sequence[str], main: Callable, *, default: str) -> list[str]:
    """Reads the flags of `main`'s binary, or prints its help and ends; `default` is the configuration file.

    Returns the words that are no flags, the program first.
    """
    full = "--helpfull" in words
    wants_help = any(word in HELP for word in words)
    known = fields_of(settings_type(main))
    words = _last_of_each(_quote_lists([word for word in words if word not in HELP], known))
    paths = [match[1] for word in words if (match := _SETTING.match(word))]
    unset = [match[1] for word in words if (match := _UNSET.fullmatch(word))]
    try:
        # `--config` is defined here and not at import, so that one process can import several binaries.
        words = _file_first([word for word in words if not _UNSET.fullmatch(word)])
        config_flags.DEFINE_config_file("config", _find(default), lock_config=True, sys_argv=words)
        rest = flags.FLAGS(words)
        for name in unset:
            *parents, last = name.split(".")
            place = functools.reduce(getattr, parents, flags.FLAGS.config)
            getattr(place, last)  # raises for a misspelt name, with a suggestion
            place[last] = None
        note_given(flags.FLAGS.config, [path for path in dict.fromkeys(paths) if path not in unset])
    except Exception as error:  # a configuration file is a program, and parsers of values raise what they like
        refuse(_sentence(error, paths, known))
    if wants_help:
        file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        print(help_page(main, settings_type(main), flags.FLAGS.config, file=file, full=full))
        sys.exit(0)
    return rest


def note_given(config: ConfigDict, names: Sequence[str]) -> None:
    """Notes the given settings of a training: they go before a preset's file of learning rates and authors' recipes."""
    if "given" in config:
        from clipbias.tuning.recipe import Recipe  # imports JAX, as the configurations with this field have done

        config.given = tuple(name for name in names if name in fields_of(Recipe) or name.startswith("method_options."))
        if "learning_rate" in config.given and "rates_file" not in names:
            config.rates_file = None


def refuse(sentence: str) -> NoReturn:
    """Ends the process with one sentence and status 1."""
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(1)


def split(text: str | None) -> list[str]:
    """Splits a list at its commas; `None` is empty."""
    if text is None:
        return []
    return [part.strip() for part in text.split(",") if part.strip()]


def matching(path: str) -> list[str]:
    """Returns the path, or all matches of a path with "*", by name."""
    return sorted(glob.glob(str(user_path(path)))) if "*" in path else [path]


def _quote_lists(words: Sequence[str], known: Mapping[str, Setting]) -> list[str]:
    """Returns the words with lists in Python's notation."""
    # `config_flags` reads `('eurosat', 'dtd')`, where people write `eurosat,dtd`.
    lists = {f"config.{name}" for name, field in known.items() if plain_type(field.kind) is tuple}
    quoted: list[str] = []
    for word in words:
        if quoted and quoted[-1].lstrip("-") in lists:  # the value is a word of its own
            word = f"{quoted.pop()}={word}"
        flag, equals, value = word.partition("=")
        if equals and flag.lstrip("-") in lists:
            try:
                ast.literal_eval(value)
            except (ValueError, SyntaxError):  # not in Python's notation, as names and paths
                word = f"{flag}={tuple(split(value))}"
        quoted.append(word)
    return quoted


def _last_of_each(words: Sequence[str]) -> list[str]:
    # Of a setting that is given several times the last value counts, also that of a list.
    names = [match[1] if (match := re.match(r"--?(config\.[^=]+)=", word)) else None for word in words]
    return [word for place, word in enumerate(words) if names[place] is None or names[place] not in names[place + 1 :]]


def _file_first(words: Sequence[str]) -> list[str]:
    """Returns the words with the configuration file first. Raises `ClipbiasError` for a missing file, or for two."""
    # `config_flags` reads settings only behind the file that defines them; people give them in any order.
    program, *others = words
    files: list[str] = []
    rest: list[str] = []
    remaining = iter(others)
    for word in remaining:
        flag, equals, file = word.partition("=")
        if flag in ("--config", "-config") and (equals or (file := next(remaining, ""))):
            files.append(file)
        else:
            rest.append(word)
    if len(files) > 1:
        raise ClipbiasError(f"give one --config, not {' and '.join(files)}; settings are given as --config.name=value.")
    return [program, *(f"--config={_find(file)}" for file in files), *rest]


def _find(path: str) -> str:
    """Finds `FILE` or `FILE:PRESET` in the working folder, else among the package's configurations."""
    file, colon, preset = path.partition(":")
    packaged = CONFIGS.parent / file
    if Path(file).is_file() or not packaged.is_file():
        if not Path(file).is_file() or not file.endswith(".py"):
            names = ", ".join(sorted(f"configs/{path.stem}.py" for path in CONFIGS.glob("[!_]*.py")))
            raise ClipbiasError(f"there is no configuration file {file!r}; clipbias has {names}.")
        return path
    return f"{packaged}{colon}{preset}"


def _sentence(error: BaseException, paths: Sequence[str], known: Mapping[str, Setting]) -> str:
    """Describes an error of reading a command line in one line; `paths` are its settings, `known` the binary's."""
    if isinstance(error, flags.UnrecognizedFlagError) and "config" in flags.FLAGS:
        setting = f"config.{error.flagname}"
        config = flags.FLAGS["config"].value  # the flags are not parsed
        if isinstance(config, ConfigDict) and setting in flatten(config.to_dict(), "config"):
            return f"there is no flag --{error.flagname}; did you mean --{setting}?"
    # The first cause says most: `config_flags` wraps exceptions of configuration files.
    causes = [error]
    while cause := causes[-1].__context__:
        causes.append(cause)
    if isinstance(causes[-1], ClipbiasError):
        return str(causes[-1])
    message: object = error
    while isinstance(message, BaseException) and message.args:
        message = message.args[0]
    lines = [line.strip() for line in str(message).strip().splitlines()]
    text = ". ".join(line.removesuffix(".") for line in lines)
    if "Traceback" in text:  # of a configuration file
        return f"{text.partition(': ')[0]}: {lines[-1]}"
    if (match := re.match(r"flag --config\.([\w.]+)=(.*?): ", text)) and match[1] in known:
        try:
            check_value(match[1], match[2], known[match[1]].kind)
        except ClipbiasError as better:
            return str(better)
    unknown = [path for path in paths if text.strip("'") in path.split(".")]
    if isinstance(error, AttributeError | KeyError) and unknown:
        path = unknown[0]
        beginning = path.partition(".")[0]
        near = None if beginning in known else meant(beginning, known)
        return f"there is no setting {path!r}{f'; did you mean {near}?' if near else ''}"
    if isinstance(error, AttributeError | KeyError | ValueError) and (match := _NO_SETTING.search(text)):
        return f"there is no setting {match[match.lastindex or 0]!r}; see --help."
    if isinstance(error, AttributeError | KeyError):
        return f"there is no setting {text}"
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"


def settings_type(main: Callable) -> type:
    """Returns the dataclass of a binary's settings: the annotation of `settings` in its `main`."""
    return get_type_hints(main)["settings"]


def binary_of(main: Callable) -> str:
    """Returns the name of `main`'s binary, such as "train"."""
    return Path(inspect.getfile(main)).stem
