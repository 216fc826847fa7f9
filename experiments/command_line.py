"""Reading a binary's command line: its flags, its configuration file, its help."""

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
from clipbias.checks import check_value, plain_type
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.settings import Setting, fields_of, flatten
from clipbias.terminal import printable
from experiments.help_page import help_page

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is written.")
CONFIGS = Path(str(configs.__file__)).parent
_SETTING = re.compile(r"--?config\.([^=]+)")
# `config_flags` knows no None.
_UNSET = re.compile(r"--?config\.([^=]+)=None")
# What its errors, and Python's, say of a setting below a name that has none.
_NO_SETTING = re.compile(r"^'([\w.]+)'$|lookup: ([\w.]+)|^Override ([\w.]+) can not|object has no attribute '(\w+)'")
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def parse(words: Sequence[str], main: Callable, *, default: str) -> list[str]:
    """Defines and reads the flags, or prints the help and ends. Returns the words that are no flags, the program first.

    `--config` is defined here, not at import: several binaries can be imported into one process.

    Args:
      words: the command line.
      main: of the binary.
      default: its configuration file.
    """
    full = "--helpfull" in words
    wants_help = any(word in HELP for word in words)
    known = fields_of(settings_type(main))
    words = _last_of_each(_quote_lists([word for word in words if word not in HELP], known))
    paths = [match[1] for word in words if (match := _SETTING.match(word))]
    unset = [match[1] for word in words if (match := _UNSET.fullmatch(word))]
    try:
        words = _file_first([word for word in words if not _UNSET.fullmatch(word)])
        config_flags.DEFINE_config_file("config", _find(default), lock_config=True, sys_argv=words)
        rest = flags.FLAGS(words)
        for name in unset:
            *parents, last = name.split(".")
            place = functools.reduce(getattr, parents, flags.FLAGS.config)
            getattr(place, last)  # which suggests what a misspelt name meant
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
    """Notes which settings of a training are given, before which a file of learning rates gives way.

    Else a preset's file, or a method's authors, would have the last word on what was asked for.
    """
    if "given" in config:
        from clipbias.tuning.recipe import Recipe  # which such a configuration has imported, and others do without

        config.given = tuple(name for name in names if name in fields_of(Recipe) or name.startswith("method_options."))
        if "learning_rate" in config.given and "rates_file" not in names:
            config.rates_file = None


def refuse(sentence: str) -> NoReturn:
    """Ends the process with one sentence and status 1."""
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(1)


def split(text: str | None) -> list[str]:
    """The parts of a list separated by commas; none for `None`."""
    if text is None:
        return []
    return [part.strip() for part in text.split(",") if part.strip()]


def matching(path: str) -> list[str]:
    """The path, or where it has a "*" all that it matches, by name."""
    return sorted(glob.glob(str(user_path(path)))) if "*" in path else [path]


def _quote_lists(words: Sequence[str], known: Mapping[str, Setting]) -> list[str]:
    """The words with lists such as `--config.datasets=eurosat,dtd` in Python's notation, which `config_flags` reads."""
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
    """The words without settings that come again later: the last value counts, of lists too."""
    names = [match[1] if (match := re.match(r"--?(config\.[^=]+)=", word)) else None for word in words]
    return [word for place, word in enumerate(words) if names[place] is None or names[place] not in names[place + 1 :]]


def _file_first(words: Sequence[str]) -> list[str]:
    """The words with the configuration file before the settings, which `config_flags` reads by it alone.

    Raises:
      ClipbiasError: there is no such file, or there are two.
    """
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
    """`FILE` or `FILE:PRESET`, the file in the working folder, or else the package's own."""
    file, colon, preset = path.partition(":")
    packaged = CONFIGS.parent / file
    if Path(file).is_file() or not packaged.is_file():
        if not Path(file).is_file() or not file.endswith(".py"):
            names = ", ".join(sorted(f"configs/{path.stem}.py" for path in CONFIGS.glob("[!_]*.py")))
            raise ClipbiasError(f"there is no configuration file {file!r}; clipbias has {names}.")
        return path
    return f"{packaged}{colon}{preset}"


def _sentence(error: BaseException, paths: Sequence[str], known: Mapping[str, Setting]) -> str:
    """What is wrong with a command line, in one line.

    Args:
      error: of reading it.
      paths: the settings that it names.
      known: the binary's settings.
    """
    if isinstance(error, flags.UnrecognizedFlagError) and "config" in flags.FLAGS:
        meant = f"config.{error.flagname}"
        config = flags.FLAGS["config"].value  # the flags are not parsed
        if isinstance(config, ConfigDict) and meant in flatten(config.to_dict(), "config"):
            return f"there is no flag --{error.flagname}; did you mean --{meant}?"
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
        alike = [
            setting
            for setting in known
            if beginning in ("".join(word[:1] for word in setting.split("_")), setting.rpartition("_")[2])
        ]
        hint = f"; did you mean {alike[0]}?" if alike and beginning not in known else ""
        return f"there is no setting {path!r}{hint}"
    if isinstance(error, AttributeError | KeyError | ValueError) and (match := _NO_SETTING.search(text)):
        return f"there is no setting {match[match.lastindex or 0]!r}; see --help."
    if isinstance(error, AttributeError | KeyError):
        return f"there is no setting {text}"
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"


def settings_type(main: Callable) -> type:
    """The dataclass of a binary's settings: the annotation of `settings` in its `main`."""
    return get_type_hints(main)["settings"]


def binary_of(main: Callable) -> str:
    """The name of the binary that a `main` belongs to, such as "train"."""
    return Path(inspect.getfile(main)).stem
