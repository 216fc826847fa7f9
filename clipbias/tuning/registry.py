"""Methods by name: built-in methods, their presets, and a user's own file or module, a subclass of `Method`.

A file or module runs only if the user named it. An adapter that names one is matched with those that the user named.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import pkgutil
import sys
import sysconfig
import traceback
import uuid
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from clipbias.checks import annotations, check_value, meant, plain_type
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.identity import identity
from clipbias.tuning import methods
from clipbias.tuning.method import FeatureMethod, Kind, Method, Options, Preset, TestTimeMethod


def is_user_method(name: str) -> bool:
    """Whether a method's name is a file (`own.py`) or module (`package.own`), with `…:Class` for one of several."""
    where, _, attribute = name.partition(":")
    return where.endswith(".py") or "." in where or bool(attribute)


def load_user_method(name: str) -> type[Method]:
    """Runs a user's file or module. Returns its subclass of `Method`; raises `ClipbiasError` where that fails."""
    where, _, attribute = name.partition(":")
    try:
        if where.endswith(".py"):
            path = Path(_absolute(where))
            if not path.is_file():
                raise ClipbiasError(f"no file {where!r} to take a method from.")
            module = _execute(path, path.read_bytes())
        else:
            module = importlib.import_module(where)
    except ClipbiasError:
        raise
    except Exception as error:  # a user's code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else place.lineno
        inside = isinstance(error, SyntaxError) or place.filename in (where, _absolute(where))
        here = f", line {line}" if inside else ""
        raise ClipbiasError(
            f"cannot import the method's module {where!r}{here}: {type(error).__name__}: {error}."
        ) from error
    kinds = classes(module, attribute)
    if attribute and not kinds:
        raise ClipbiasError(f"{name!r}: {attribute!r} is not a subclass of clipbias.tuning.Method there.")
    if not kinds:
        raise ClipbiasError(f"{name!r} defines no subclass of clipbias.tuning.Method; write one (docs/methods.md).")
    if len(kinds) > 1:
        raise ClipbiasError(f"{name!r} holds {len(kinds)} subclasses of Method; pick one with '{name}:Class'.")
    # The program is read here, as it runs now: its files may be edited while the process lives. The user's file runs
    # again then, but a module that it imports does not.
    for file, source in _program(kinds[0]).items():
        if Path(file).is_file() and Path(file).read_bytes() != source:
            warnings.warn(
                f"{file}, of the program of {name}, was changed after this process had imported it and runs as it was. "
                "Start a new process to use it as it is now.",
                ClipbiasWarning,
                stacklevel=2,
            )
    return kinds[0]


def known_class(name: str) -> type[Method] | None:
    """The class of a built-in method, or of a user's that this process has loaded. Runs nothing."""
    if name in METHODS:
        return METHODS[name][0]
    where, _, attribute = name.partition(":")
    # Names of methods come from result files too: nothing is imported for the sake of a label.
    module = sys.modules.get(_module_name(where))
    return None if module is None else next(iter(classes(module, attribute)), None)


def classes(module: ModuleType, attribute: str = "") -> list[type[Method]]:
    # Classes that the module imports, such as the base of the user's method, count only by name.
    named = [getattr(module, attribute, None)] if attribute else list(vars(module).values())
    kinds = [kind for kind in named if inspect.isclass(kind) and issubclass(kind, Method)]
    return [kind for kind in kinds if attribute or kind.__module__ == module.__name__]


@functools.cache
def source_digest(method_type: type[Method]) -> str | None:
    """SHA-256 of a user's program as it was loaded, with its own modules that it imports; `None` of a built-in.

    Of a class without a file of its own it is drawn anew in each process.
    """
    if method_type.__module__.startswith(f"{methods.__name__}."):
        return None
    program = _program(method_type)
    # No file tells two versions of a class apart that was typed in, as in a notebook, or made by a function: each is
    # known in this process alone, so that no result of an earlier one stands for it.
    return identity(list(program.values()) if program else uuid.uuid4().hex)


@functools.cache
def _program(method_type: type[Method]) -> dict[str, bytes]:
    """The files of a user's program as they were loaded; none for a class without a file of its own."""
    # Cached from the first call, when the program is loaded: a file that is edited later is not the program that runs.
    file = getattr(sys.modules.get(method_type.__module__), "__file__", None)
    tree = ast.parse("" if file is None else Path(file).read_bytes())
    is_there = any(isinstance(node, ast.ClassDef) and node.name == method_type.__name__ for node in ast.walk(tree))
    if file is None or not is_there or "<locals>" in method_type.__qualname__:
        return {}
    program: dict[str, bytes] = {}
    _add_program(file, sys.modules[method_type.__module__].__spec__, program)
    return program


# The source of each file with the import that it was read for: a module that several programs import is read once.
_SOURCES: dict[str, tuple[ModuleSpec | None, bytes]] = {}


def _add_program(path: str, spec: ModuleSpec | None, program: dict[str, bytes]) -> None:
    # The program is a file and those that it imports, but for libraries and this one. Imports are read from the syntax
    # tree, wherever they stand: running the program again would have side effects.
    if path not in _SOURCES or _SOURCES[path][0] is not spec:
        _SOURCES[path] = spec, Path(path).read_bytes()
    program[path] = _SOURCES[path][1]
    package = spec.parent or "" if spec is not None else ""
    libraries = (str(Path(methods.__file__).parents[1]), *sysconfig.get_paths().values())
    for node in ast.walk(ast.parse(program[path])):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):
                base = importlib.util.resolve_name(base, package)
            modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in modules:
            found = None
            with contextlib.suppress(ImportError, ValueError, AttributeError):  # a name in a module, not a module
                found = importlib.util.find_spec(name)
            where = str(found.origin) if found is not None else ""
            if where.endswith(".py") and where not in program and not where.startswith(tuple(libraries)):
                _add_program(where, found, program)


def match_user_method(recorded: str, allowed: Sequence[str]) -> str:
    """The path in `allowed` that shares the longest end with the method's path in an adapter, or a `ClipbiasError`."""
    # An adapter must not decide which code runs: it selects among the paths that the user named, and adds none.
    where, _, attribute = recorded.partition(":")
    # Equal parts of the paths, from their ends; by absolute path, so that naming a file twice is not ambiguous.
    candidates = {}
    for name in (allowed,) if isinstance(allowed, str) else allowed:
        path = name.partition(":")[0]
        pairs = zip(reversed(Path(path).parts), reversed(Path(where).parts), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        candidates[_absolute(path)] = common, name
    longest = max((count for count, _ in candidates.values()), default=0)
    if not longest:
        raise ClipbiasError(
            f"the method of this adapter is {recorded!r}, a program that is not run just because a file names it; look "
            "at it and name it yourself, with --config.own_methods or the option own_methods."
        )
    closest = [name for count, name in candidates.values() if count == longest]
    if len(closest) > 1:
        raise ClipbiasError(
            f"the method of this adapter is {recorded!r}, which may be {' or '.join(closest)} of those that you named; "
            "name one of them."
        )
    return f"{closest[0].partition(':')[0]}:{attribute}" if attribute else closest[0]


_PREFIX = "clipbias_method_"


def _module_name(where: str) -> str:
    # The key in `sys.modules`. A file's has a digest of its whole path, because files in two folders may share a name.
    if not where.endswith(".py"):
        return where
    digest = hashlib.sha256(_absolute(where).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_PREFIX}{Path(where).stem}_{digest[:12]}"


def _absolute(where: str) -> str:
    return os.path.abspath(os.path.expanduser(where))


@functools.cache
def _execute(path: Path, code: bytes) -> ModuleType:
    # Cached by content: methods are static arguments of compiled functions, and a file that runs twice makes classes
    # that are not equal.
    spec = importlib.util.spec_from_file_location(_module_name(str(path)), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Options of `clipbias.fit` and `clipbias train` that users often give a method, under other names.
_OF_TRAINING = ("learning_rate", "epochs", "batch_size", "seed", "shots")

# Names of built-in methods, each with its class and preset. Filled below.
METHODS: dict[str, tuple[type[Method], Preset]] = {}


def resolve_method(name: str, options: Options, *, dataset: str | None = None, shots: int | None = None) -> Method:
    """Makes a method: a name of `METHODS`, or the subclass of `Method` in `path/to/own.py` or `package.own[:Class]`.

    Raises `ClipbiasError` for no such method or option, a value of a wrong type, or a file that cannot be loaded.
    """
    options = {option: _hashable(name, option, value) for option, value in options.items()}
    if name in METHODS:
        kind, preset = METHODS[name]
    elif is_user_method(name):
        kind = load_user_method(name)
        preset = Preset(name)
    else:
        labels = {preset.label: each for each, (_, preset) in METHODS.items()}
        close = meant(name, (*METHODS, *labels))
        close = labels.get(close or "", close)
        others = f"there are {', '.join(METHODS)}, and Python files of your own, by their path."
        raise ClipbiasError(f"unknown method {name!r}; {f'did you mean {close!r}?' if close else others}")
    # Later ones win: the default, the preset's options, the authors' for the dataset and shots, the user's.
    dataset_options: Options = {}
    if dataset is not None:
        datasets = preset.datasets
        dataset_options = kind.options_for(dataset, shots) if datasets is None else datasets.get(dataset, {})
    # A hook in the wrong class would never be called.
    for hook, base in {"sampling": FeatureMethod, "at_test": TestTimeMethod}.items():
        if hasattr(kind, hook) and not issubclass(kind, base):
            raise ClipbiasError(f"method {name!r} has the hook {hook!r}; derive it from tuning.{base.__name__}.")
    options = {**preset.options, **dataset_options, **options}
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            close = meant(option, (*known, *_OF_TRAINING))
            hint = f"it takes {', '.join(sorted(known)) or 'none'}."
            if close:
                hint = f"did you mean {close!r}{'' if close in known else ', an option of fit and train'}?"
            raise ClipbiasError(f"method {name!r} has no option {option!r}; {hint}")
    kinds = annotations(kind)
    for option, value in options.items():
        check_value(f"option {option!r} of method {name!r}", value, kinds.get(option))
    return kind(**options)


def make_method(name: str, /, **options: Any) -> Method:
    """Makes a method by its name and options, without a dataset."""
    return resolve_method(name, options)


def method_options(method: Method) -> dict[str, Any]:
    """The options as plain values: `make_method(name, **options)` makes an equal method."""
    # No `asdict`, which would take a method among the options apart.
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}


def option_types(name: str) -> dict[str, type]:
    """The type of each option, for command lines: `float` for `float | None`."""
    method = make_method(name)
    return {option: plain_type(annotations(type(method)).get(option)) for option in method_options(method)}


def name_of(method: Method) -> str | None:
    """The most specific preset that fits a method, or the user's file or module; `None` for a class of a notebook."""
    # A preset fits if the method has all of its options.
    options = method_options(method).items()
    names = [name for name, (kind, _) in METHODS.items() if kind is type(method)]
    fitting = [name for name in names if METHODS[name][1].options.items() <= options]
    if not names:  # a user's own, from a module that can be named
        kind = type(method)
        module = sys.modules.get(kind.__module__)
        if module is None or module.__name__ == "__main__" or "." in kind.__qualname__:
            return None
        where = str(module.__file__) if module.__name__.startswith(_PREFIX) else module.__name__
        return f"{where}:{kind.__qualname__}"
    # The preset with the most options that fit: `ivlp_matched` is also an `ivlp`.
    return max(fitting or names[:1], key=lambda name: len(METHODS[name][1].options))


def find_preset(name: str) -> Preset | None:
    """The preset of a built-in method, or the first of a user's method that this process has loaded."""
    if name in METHODS:
        return METHODS[name][1]
    presets = getattr(known_class(name), "presets", None) or {}
    return next((preset for preset in presets.values() if isinstance(preset, Preset)), None)


def find_kind(name: str) -> Kind | None:
    return getattr(known_class(name), "kind", None)


def _hashable(name: str, option: str, value: Any) -> Any:
    # A method is a static argument of compiled functions and must be hashable; configurations and JSON hold lists.
    if isinstance(value, list | tuple):
        return tuple(_hashable(name, option, item) for item in value)
    try:
        hash(value)
    except TypeError as error:
        raise ClipbiasError(
            f"option {option!r} of method {name!r} is {value!r}; it must be a number, a string or a list of these."
        ) from error
    return value


def find_methods() -> dict[str, tuple[type[Method], Preset]]:
    # Modules are listed, not named: a file that is added to the folder is a method. Subclasses count by their own
    # `presets`, so that one without any does not take its base's names.
    names = [module.name for module in pkgutil.iter_modules(methods.__path__)]
    modules = [importlib.import_module(f"{methods.__name__}.{name}") for name in names]
    named = {
        name: (kind, preset)
        for module in modules
        for kind in classes(module)
        for name, preset in vars(kind).get("presets", {}).items()
    }
    return dict(sorted(named.items(), key=lambda item: item[1][1].order))


METHODS.update(find_methods())
