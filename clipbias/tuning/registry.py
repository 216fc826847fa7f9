"""Methods by name: built-in methods, their presets, and a user's own file or module."""

import dataclasses
import difflib
import importlib
import pkgutil
from typing import Any

from clipbias.checks import annotations, check_value, plain_type
from clipbias.errors import ClipbiasError
from clipbias.tuning import methods
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.method import Method
from clipbias.tuning.preset import Kind, Options, Preset
from clipbias.tuning.test_time_method import TestTimeMethod
from clipbias.tuning.user_methods import (
    classes,
    is_user_method,
    load_user_method,
    loaded_user_method,
    user_method_name,
)
from clipbias.tuning.user_methods import source_digest as source_digest

# Names of built-in methods, each with its class and preset. Filled below.
METHODS: dict[str, tuple[type[Method], Preset]] = {}


def resolve_method(name: str, options: Options, *, dataset: str | None = None, shots: int | None = None) -> Method:
    """A method by name. An option is that of `options`, else of the dataset, else of the preset, else the default.

    Args:
      name: a name of `METHODS`; or a file `path/to/own.py` or module `package.own` with one subclass of `Method`.
        `…:Class` selects one of several subclasses.
      options: options by name.
      dataset: the dataset whose authors' options are used; `None` for none.
      shots: training images per class, `None` for all. Some authors' options depend on it.

    Raises:
      ClipbiasError: no such method or option, a value of a wrong type, or a file that cannot be loaded.
    """
    options = {option: _hashable(name, option, value) for option, value in options.items()}
    if name in METHODS:
        kind, preset = METHODS[name]
    elif is_user_method(name):
        kind = load_user_method(name)
        preset = Preset(name)
    else:
        close = difflib.get_close_matches(name, METHODS, 1)
        raise ClipbiasError(
            f"unknown method {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} Methods: "
            f"{', '.join(METHODS)}, or the path of a Python file of your own."
        )
    dataset_options: Options = {}
    if dataset is not None and preset.datasets is None:
        dataset_options = kind.options_for(dataset, shots)
    elif dataset is not None and preset.datasets is not None:
        dataset_options = preset.datasets.get(dataset, {})
    return _construct(kind, name, {**preset.options, **dataset_options, **options})


def make_method(name: str, /, **options: Any) -> Method:
    """`resolve_method` without a dataset."""
    return resolve_method(name, options)


def method_options(method: Method) -> dict[str, Any]:
    """The options as plain values: `make_method(name, **options)` makes an equal method."""
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}


def option_types(name: str) -> dict[str, type]:
    """The type of each option, for command lines: `float` for `float | None`."""
    method = make_method(name)
    kinds = annotations(type(method))
    return {option: plain_type(kinds.get(option)) for option in method_options(method)}


def name_of(method: Method) -> str | None:
    """The name of the most specific preset that fits a method, or of the user's file or module.

    `None` for other methods, such as a class that is defined in a notebook.
    """
    options = method_options(method).items()
    names = [name for name, (kind, _) in METHODS.items() if kind is type(method)]
    fitting = [name for name in names if METHODS[name][1].options.items() <= options]
    if not names:
        return user_method_name(method)
    return max(fitting or names[:1], key=lambda name: len(METHODS[name][1].options))


def find_preset(name: str) -> Preset | None:
    """The preset of a built-in method, or of a user's method that this process has loaded.

    A user's file is never run for its label: until it is loaded, its path is its label.
    """
    if name in METHODS:
        return METHODS[name][1]
    presets = getattr(loaded_user_method(name), "presets", None) or {}
    return next((preset for preset in presets.values() if isinstance(preset, Preset)), None)


def find_kind(name: str) -> Kind | None:
    """The kind of a built-in or loaded method; `None` if unknown."""
    method = METHODS[name][0] if name in METHODS else loaded_user_method(name)
    return None if method is None else method.kind


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
    """Lists become tuples: a method is a static argument of compiled functions and must be hashable."""
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
    """The built-in methods by name, in the order of tables."""
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
