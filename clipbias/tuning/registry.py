"""Methods by name: the built-in ones, presets of them, and a user's own file or module."""

import dataclasses
import difflib
import importlib
import pkgutil
import types
from collections.abc import Mapping
from typing import Any

from clipbias.checks import annotations, check_value, plain_type
from clipbias.errors import ClipbiasError
from clipbias.tuning import methods
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.method import Method
from clipbias.tuning.preset import Kind, Options, Preset
from clipbias.tuning.test_time_method import TestTimeMethod
from clipbias.tuning.user_methods import (
    FunctionMethod,
    classes,
    from_functions,
    is_user_method,
    load_user_method,
    loaded_user_method,
    user_method_name,
)
from clipbias.tuning.user_methods import source_digest as source_digest

# Every name of a method of this package: its class and the preset that the name stands for. Filled below.
METHODS: dict[str, tuple[type[Method], Preset]] = {}


def resolve_method(name: str, given: Options, *, dataset: str | None = None, shots: int = 0) -> Method:
    """A method with all its options: each is the given one, else the dataset's, else the preset's, else the default.

    Args:
      name: a name of `METHODS`; or a file `path/to/own.py` or module `package.own` that holds one subclass of `Method`,
        or plain functions `init` and `adapt` (and `text`, if the prompt text is not "a photo of a {}."). `…:Class`
        picks one of several.
      given: options by name.
      dataset: whose options of the method's authors are taken; `None` for those of no dataset.
      shots: training images per class, 0 for all, on which some of these depend.

    Raises:
      ClipbiasError: no such method or option, a value of another kind, or a file that cannot be loaded.
    """
    given = {option: _hashable(name, option, value) for option, value in given.items()}
    if name in METHODS:
        kind, preset = METHODS[name]
    elif is_user_method(name):
        program = load_user_method(name)
        if isinstance(program, types.ModuleType):
            return from_functions(program, name, given)
        kind, preset = program, Preset(name)
    else:
        close = difflib.get_close_matches(name, METHODS, 1)
        raise ClipbiasError(
            f"unknown method {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} Methods: "
            f"{', '.join(METHODS)}, or the path of a Python file of your own."
        )
    of_dataset: Mapping[str, Any] = {}
    if dataset is not None:
        by_dataset = preset.datasets
        of_dataset = kind.options_for(dataset, shots) if by_dataset is None else by_dataset.get(dataset, {})
    return _construct(kind, name, {**preset.options, **of_dataset, **given})


def make_method(name: str, /, **options: Any) -> Method:
    """A method with options as given, on no dataset: `resolve_method` without one."""
    return resolve_method(name, options)


def method_options(method: Method) -> dict[str, Any]:
    """The options as plain values, such that `make_method(name, **options)` makes the method again."""
    if isinstance(method, FunctionMethod):
        return dict(method.options)
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}


def option_types(name: str) -> dict[str, type]:
    """The type of each option of a method, so that a command line can set it: `float` of `float | None`."""
    method = make_method(name)
    kinds = annotations(type(method))
    return {option: plain_type(kinds.get(option)) for option in method_options(method)}


def name_of(method: Method) -> str | None:
    """The name that makes a method again with its options: of all that fit the most specific preset's, or a program's.

    `None` where there is none, as for a class that is defined in a notebook.
    """
    options = method_options(method).items()
    found = [name for name, (kind, _) in METHODS.items() if kind is type(method)]
    fitting = [name for name in found if METHODS[name][1].options.items() <= options]
    if not found:
        return user_method_name(method)
    return max(fitting or found[:1], key=lambda name: len(METHODS[name][1].options))


def find_preset(name: str) -> Preset | None:
    """What a method is called: one of this package, or one of a user's own that this process has made already.

    A program is never run for its label: until it has been made, its path is its name.
    """
    if name in METHODS:
        return METHODS[name][1]
    program = loaded_user_method(name)
    presets = getattr(program, "presets", None)
    return next((one for one in presets.values() if isinstance(one, Preset)), None) if presets else None


def find_kind(name: str) -> Kind | None:
    """The kind of a method, likewise; `None` where it is not known."""
    program = METHODS[name][0] if name in METHODS else loaded_user_method(name)
    return program.kind if isinstance(program, type) else None


def _construct(kind: type[Method], name: str, options: Options) -> Method:
    for hook, base in {"sampling": FeatureMethod, "at_test": TestTimeMethod}.items():
        if hasattr(kind, hook) and not issubclass(kind, base):
            raise ClipbiasError(f"method {name!r} has the hook {hook!r}; derive it from tuning.{base.__name__}.")
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {sorted(known) or 'none'}."
            raise ClipbiasError(f"method {name!r} has no option {option!r}; {hint}")
    kinds = annotations(kind)
    for option, value in options.items():
        check_value(f"option {option!r} of method {name!r}", value, kinds.get(option))
    return kind(**options)


def _hashable(name: str, option: str, value: Any) -> Any:
    """Lists as tuples: a method is a static argument of compiled functions, which must be hashable."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(name, option, item) for item in value)
    try:
        hash(value)
    except TypeError as error:
        raise ClipbiasError(
            f"option {option!r} of method {name!r} is {value!r}; it must be a number, a text or a list of these."
        ) from error
    return value


def find_methods() -> dict[str, tuple[type[Method], Preset]]:
    """The methods of this package by name, in their order: the presets of the classes in its modules."""
    modules = [
        importlib.import_module(f"{methods.__name__}.{found.name}") for found in pkgutil.iter_modules(methods.__path__)
    ]
    named = {
        name: (kind, preset)
        for module in modules
        for kind in classes(module)
        for name, preset in vars(kind).get("presets", {}).items()
    }
    return dict(sorted(named.items(), key=lambda item: item[1][1].order))


METHODS.update(find_methods())
