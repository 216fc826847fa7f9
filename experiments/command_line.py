"""Reading a binary's command line: its flags, its configuration file, its help."""

import glob
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.terminal import printable
from experiments.values import flat

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is written.")
CONFIGS = Path(str(configs.__file__)).parent
USAGE = "[--config=FILE[:PRESET]] [--config.NAME=VALUE …]"
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def parse(words: Sequence[str], main: Callable, *, default: str) -> list[str]:
    """Defines and reads the flags, or prints the help and ends. Returns the words that are no flags, the program first.

    `--config` is defined here, not at import: several binaries can be imported into one process.

    Args:
      words: the command line.
      main: of the binary.
      default: its configuration file.
    """
    words, asked = [word for word in words if word not in HELP], any(word in HELP for word in words)
    try:
        for place in [place for place, word in enumerate(words) if re.match(r"--?config(=|$)", word)]:
            flag, equals, file = words[place].partition("=")
            if equals:
                words[place] = f"{flag}={_find(file)}"
            elif place + 1 < len(words):
                words[place + 1] = _find(words[place + 1])
        config_flags.DEFINE_config_file("config", _find(default), lock_config=True, sys_argv=words)
        rest = flags.FLAGS(words)
        _split_lists(flags.FLAGS.config)
    except Exception as error:  # a configuration file is a program, and parsers of values raise what they like
        refuse(_sentence(error))
    if asked:
        print(_help(main))
        sys.exit(0)
    return rest


def refuse(sentence: str) -> NoReturn:
    """Ends the process with one sentence and status 1."""
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(1)


def split(text: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def matching(path: str) -> list[str]:
    """The path, or where it has a "*" all that it matches, by name."""
    return sorted(glob.glob(str(user_path(path)))) if "*" in path else [path]


def _split_lists(config: ConfigDict) -> None:
    """Lists of texts are separated by commas, as in `--config.datasets=eurosat,dtd`."""
    for name, value in config.items():
        if isinstance(value, tuple):
            config[name] = tuple(part for item in value for part in (split(item) if isinstance(item, str) else [item]))


def _find(path: str) -> str:
    """`FILE` or `FILE:PRESET`, the file in the working folder, or else the package's own."""
    file, colon, preset = path.partition(":")
    own = CONFIGS.parent / file
    if Path(file).is_file() or not own.is_file():
        if not Path(file).is_file() or not file.endswith(".py"):
            ours = ", ".join(sorted(f"configs/{one.stem}.py" for one in CONFIGS.glob("[!_]*.py")))
            raise ClipbiasError(f"there is no configuration file {file!r}; clipbias has {ours}.")
        return path
    return f"{own}{colon}{preset}"


def _sentence(error: BaseException) -> str:
    """What is wrong with a command line, in one line."""
    if isinstance(error, flags.UnrecognizedFlagError) and "config" in flags.FLAGS:
        meant = f"config.{error.flagname}"
        if error.flagname in flat(flags.FLAGS["config"].value):
            return f"there is no flag --{error.flagname}; did you mean --{meant}?"
    causes = [error]
    while cause := causes[-1].__context__:
        causes.append(cause)
    if isinstance(causes[-1], ClipbiasError):
        return str(causes[-1])
    told: object = error
    while isinstance(told, BaseException) and told.args:
        told = told.args[0]
    text = ". ".join(line.strip().removesuffix(".") for line in str(told).splitlines())
    if "Traceback" in text:  # of a configuration file
        return f"{text.partition(': ')[0]}: {str(told).strip().splitlines()[-1]}"
    if isinstance(error, AttributeError):
        return f"there is no setting {text}"
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"


def _help(main: Callable) -> str:
    """The docstring of a binary and its flags; its configuration files, whose comments explain the settings, and the
    values that result.
    """
    binary = Path(inspect.getfile(main)).stem
    parts = [main.__globals__["__doc__"].strip(), f"Usage: clipbias {binary} {USAGE}"]
    parts.append(flags.FLAGS.module_help(__name__).strip())
    given = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    own, config = CONFIGS / f"{binary}.py", flags.FLAGS.config
    base = [CONFIGS / "base.py"] if "configs.base" in sys.modules else []  # not every configuration starts from it
    for file in {path.resolve(): path for path in (*base, own, Path(given))}.values():
        title = f"==== configs/{file.name} " if file.parent == CONFIGS else f"==== {file} "
        parts.append(title.ljust(100, "=") + "\n" + file.read_text(encoding="utf-8").strip())
    if isinstance(config.get("method"), str):
        from clipbias.tuning.registry import make_method

        parts.append(f"==== {config.method} ".ljust(100, "=") + f"\n{inspect.getdoc(make_method(config.method))}")
    values = (f"--config.{name}={_quoted(value)}" for name, value in flat(config).items())
    parts.append("\n".join(["==== the values that result ".ljust(100, "="), *values]))
    text = "\n\n".join(part for part in parts if part)
    return text.replace("python -m experiments.", "clipbias ") if sys.argv[0].startswith("clipbias ") else text


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, tuple | ConfigDict) else shlex.quote(str(value))
