"""Configurations by name, and what the settings in them are: their types, defaults, and the comments above them.

What a setting means is written once, in the comment above its assignment in `configs/`. Help, the page of settings and
the answers to misspelt names are made from there.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import configs
from clipbias.checks import Choices
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable

FOLDER = Path(str(configs.__file__)).parent
COMMON = "base"  # the configuration that all others start from


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    Attributes:
      name: with dots, such as "mesh.run".
      kind: its type in words, or what may be chosen.
      default: its value in the configuration.
      meaning: what its comment says.
      common: whether it is of `configs/base.py`, and so in every configuration.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    common: bool


def files() -> list[str]:
    """The names of the configurations of this package, without "base", which is none by itself."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py") if path.stem != COMMON)


def find(path: str) -> Path:
    """The file of a configuration: the one in the working folder, or else that of this package.

    Raises:
      ClipbiasError: there is neither.
    """
    here, own = Path(path), FOLDER / Path(path).name
    if here.is_file():
        return here
    if here.parent == Path(FOLDER.name) and own.is_file():
        return own
    close = [_shipped(name) for name in nearest(here.stem, files())]
    raise ClipbiasError(
        f"there is no configuration file {path}{_perhaps(close)} Those of clipbias are "
        f"{', '.join(map(_shipped, files()))}."
    )


def _shipped(name: str) -> str:
    """How a command line names a configuration of this package."""
    return f"{FOLDER.name}/{name}.py"


def load(given: str) -> ConfigDict:
    """The configuration that `FILE` or `FILE:PRESET` names, locked.

    Raises:
      ClipbiasError: there is no such file or preset, or the file is no configuration.
    """
    path, colon, preset = given.partition(":")
    module = _run(find(path), path)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ClipbiasError(f"{path} is no configuration: it defines no get_config().")
    known = getattr(module, "PRESETS", None)
    if colon and not inspect.signature(get_config).parameters:
        raise ClipbiasError(f"{path} has no presets; leave out {colon}{preset}.")
    if colon and known is not None and preset not in known:
        raise ClipbiasError(
            f"{path} has no preset {preset!r}{_perhaps(nearest(preset, known))} It has {', '.join(known)}."
        )
    try:
        config = get_config(*[preset] if colon else [])
    except ClipbiasError:
        raise
    except Exception as error:  # a configuration is a program, and may raise anything
        raise ClipbiasError(f"{path} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ClipbiasError(f"{path} is no configuration: its get_config() returns no ConfigDict.")
    return config.lock()


def _run(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ClipbiasError(f"{name} is no configuration: the name of one ends with .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ClipbiasError(f"{error.filename}, line {error.lineno}, is no Python: {error.msg}.") from error
    except ClipbiasError:
        raise
    except Exception as error:
        raise ClipbiasError(f"{name} cannot be used: {type(error).__name__}: {error}") from error
    return module


def presets(name: str) -> Mapping[str, str]:
    """What may stand behind the colon of a configuration of this package, and what each is; empty for none."""
    module = importlib.import_module(f"{configs.__name__}.{name}")
    return module.presets() if hasattr(module, "presets") else getattr(module, "PRESETS", {})


def check_names(names: Sequence[str], config: ConfigDict) -> None:
    """Raises `ClipbiasError` for the first of these settings, with dots, that a configuration has not."""
    known = [*flat(config), *(name for name, value in config.items() if isinstance(value, ConfigDict))]
    for name in names:
        if name not in known:
            close = nearest(name, known)
            raise ClipbiasError(f"there is no setting --config.{name}{_perhaps([f'--config.{one}' for one in close])}")


def unknown_flag(name: str, config: ConfigDict | None, known: Sequence[str]) -> str:
    """The sentence that answers a flag which does not exist: what it may have been meant to be."""
    settings = [] if config is None else list(flat(config))
    close = [f"--config.{name}"] if name in settings else []
    close += [f"--{one}" for one in nearest(name, known)]
    close += [f"--config.{one}" for one in nearest(name, settings)]
    return f"there is no flag --{name}{_perhaps(list(dict.fromkeys(close)))}"


def nearest(given: str, names: Sequence[str]) -> list[str]:
    """Up to three of the names that someone who wrote `given` may have meant, the likeliest first.

    "lr" and "wd" are first letters of words, "rate" is one of them, "num_shots" has one, "lerning_rate" is misspelt.
    """

    def words(name: str) -> list[str]:
        return re.split(r"[\W_]+", name.rpartition(".")[2].lower())

    wanted = words(given)
    joined, own = "".join(wanted), set(wanted)
    same = [name for name in names if "".join(words(name)) == joined]
    initials = [name for name in names if "".join(word[:1] for word in words(name)) == joined]
    close = difflib.get_close_matches(given.lower(), names, 3)
    shared = sorted((name for name in names if own & set(words(name))), key=lambda name: -len(own & set(words(name))))
    return list(dict.fromkeys([*same, *initials, *close, *shared]))[:3]


def _perhaps(close: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(close)}?" if close else "."


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their names, with dots."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, ConfigDict) and value
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def describe(config: ConfigDict, file: str, binary: str) -> list[Setting]:
    """The settings of a configuration: those of its own first, then those that all have, in the order of the files.

    Args:
      config: as `file` gives it.
      file: the name of one of this package's configurations, such as "demo", or the path of another one.
      binary: whose settings they are, such as "table1"; its own configuration may say what a common setting means here.
    """
    common, own = comments(COMMON), comments(file if file in files() else binary, binary)
    written = list(own)

    def place(name: str) -> tuple[bool, int]:
        group = name if name in own else name.partition(".")[0]
        return name in common, written.index(group) if group in own else len(written)

    return [
        Setting(name, kind_in_words(name, value, config), value, _meaning(name, own, config), name in common)
        for name, value in sorted(flat(config).items(), key=lambda item: place(item[0]))
    ]


def _meaning(name: str, known: Mapping[str, str], config: ConfigDict) -> str:
    group, _, option = name.partition(".")
    if group == "method_options" and option and "method" in config:
        return option_meanings(config.method).get(option, "")
    return known.get(name) or known.get(group, "")


@functools.cache
def comments(file: str, binary: str = "") -> Mapping[str, str]:
    """What the comments of a configuration and of those that it starts from say of each setting, in their order.

    The file that brings a setting says what it means, and so may the binary's own; where another one only changes its
    value, the comment there says why it does.
    """
    source = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    found: dict[str, str] = {}
    for parent in _parents(tree):
        found |= {name: meaning for name, meaning in comments(parent, binary).items() if not found.get(name)}
    lines = source.splitlines()
    for names, line in _assignments(tree):
        for name in names:
            comment = _comment_above(lines, line)
            if not found.get(name) or (comment and file == binary):
                found[name] = comment or found.get(name, "")
    return found


def ancestors(file: str) -> list[str]:
    """The configurations of this package that one of them starts from, at first or second hand."""
    parents = _parents(ast.parse((FOLDER / f"{file}.py").read_text(encoding="utf-8")))
    return [*parents, *(further for parent in parents for further in ancestors(parent))]


def _parents(tree: ast.Module) -> list[str]:
    """The configurations that a file starts from."""
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == configs.__name__
        for alias in node.names
    }
    used = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "get_config")
    return list(dict.fromkeys(node.id for node in used if isinstance(node, ast.Name) and node.id in imported))


def _assignments(tree: ast.Module) -> Iterator[tuple[list[str], int]]:
    """The settings that each statement of `get_config` sets, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = [
                part for target in node.targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])
            ]
            written = [ast.unparse(target) for target in targets if isinstance(target, ast.Attribute)]
            names = [name.removeprefix("config.") for name in written if name.startswith("config.")]
            if names:
                yield names, node.lineno


def _comment_above(lines: Sequence[str], line: int) -> str:
    """The comment in the whole lines directly above a line, counted from 1."""
    found: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not (text := text.strip()).startswith("#"):
            break
        found.insert(0, text.lstrip("# "))
    return " ".join(found)


@functools.cache
def option_meanings(method: str) -> Mapping[str, str]:
    """What the options of a method mean, from the docstrings of its class and of those that it derives from."""
    from clipbias.tuning.registry import make_method

    found: dict[str, str] = {}
    for kind in reversed(type(make_method(method)).__mro__):
        _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
        listed = textwrap.dedent(listed.partition("\n\n")[0])
        for names, meaning in re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", listed, re.MULTILINE):
            meaning = " ".join(meaning.split())
            found |= dict.fromkeys(names.split(", "), meaning[:1].upper() + meaning[1:])
    return found


def kind_in_words(name: str, value: Any, config: ConfigDict) -> str:
    """The type of a setting for people, or what may be chosen."""
    from experiments.configuration import KINDS

    kind = KINDS.get(name)
    if kind is not None and typing.get_origin(kind) is typing.Annotated:
        limits = typing.get_args(kind)[1]
        if isinstance(limits, Choices):
            return " | ".join(limits.texts)
        kind = typing.get_args(kind)[0]
    if kind is None or kind in (int, float, str):
        kind = type(value) if value is not None else _unset_type(name, config)
    if isinstance(value, tuple | list) or typing.get_origin(kind) is tuple:
        inner = type(value[0]) if value else str
        if not value and typing.get_args(kind):
            inner = typing.get_args(kind)[0]
            inner = typing.get_args(inner)[0] if typing.get_origin(inner) is typing.Annotated else inner
        return {int: "whole numbers", float: "numbers"}.get(inner, "texts")
    words = {bool: "True | False", int: "whole number", float: "number", str: "text", tuple: "texts"}
    return words.get(kind, "values by name" if isinstance(value, Mapping | ConfigDict) else "value")


def _unset_type(name: str, config: ConfigDict) -> type:
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    return config.get_type(last)


def shown(value: Any) -> str:
    """A default as help shows it, and as a command line takes it."""
    return "nothing" if value is None else printable(dict(value) if isinstance(value, ConfigDict) else value) or "''"
