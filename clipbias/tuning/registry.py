"""Methods by name: the built-in ones, presets of them, and a user's own file or module."""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from clipbias.checks import annotations, check_value
from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning import methods
from clipbias.tuning.method import Learnables, Method, Preset, PromptText

# Every name of a method of this package: its class and the preset that the name stands for. Filled below.
METHODS: dict[str, tuple[type[Method], Preset]] = {}


@dataclasses.dataclass(frozen=True)
class FunctionMethod(Method):
    """A method from the plain functions of a module.

    `init(rng, clip, class_names, **options)`, `adapt(learnables, **options)` and, where there is one,
    `text(template, clip, **options)`.
    """

    init_function: Callable[..., Learnables]
    adapt_function: Callable[..., Adaptation]
    text_function: Callable[..., PromptText | str] | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return self.init_function(rng, clip, class_names, **dict(self.options))

    def adapt(self, learnables: Learnables) -> Adaptation:
        return self.adapt_function(learnables, **dict(self.options))

    def text(self, template: str, clip: Clip) -> PromptText:
        if self.text_function is None:
            return super().text(template, clip)
        text = self.text_function(template, clip, **dict(self.options))
        return PromptText((text,)) if isinstance(text, str) else text


def make_method(name: str, /, **options: Any) -> Method:
    """Makes a method.

    Args:
      name: a name of `METHODS`; or a file `path/to/own.py` or module `package.own` that holds one subclass of `Method`,
        or plain functions `init` and `adapt` (and `text`, if the prompt text is not "a photo of a {}."). `…:Class`
        picks one of several.
      **options: the method's options.

    Raises:
      ClipbiasError: no such method or option, a value of another kind, or a file that cannot be loaded.
    """
    options = {key: _frozen(name, key, value) for key, value in options.items()}
    if name in METHODS:
        kind, preset = METHODS[name]
        return _construct(kind, name, {**preset.options, **options})
    where, _, attribute = name.partition(":")
    if where.endswith(".py") or "." in where or attribute:
        return _from_module(_import(where), name, attribute, options)
    close = difflib.get_close_matches(name, METHODS, 1)
    raise ClipbiasError(
        f"unknown method {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} Methods: {', '.join(METHODS)}, or "
        "the path of a Python file of your own."
    )


def resolve(name: str, given: Mapping[str, Any], *, dataset: str | None = None, shots: int = 0) -> Method:
    method = make_method(name, **given)
    if dataset is None:
        return method
    default = {field.name: field.default for field in dataclasses.fields(method)}
    facts = method.options_for(dataset, shots)
    found = {key: value for key, value in facts.items() if getattr(method, key) == default[key]}
    return make_method(name, **{**given, **found})


def method_options(method: Method) -> dict[str, Any]:
    """The options as plain values, such that `make_method(name, **options)` makes the method again."""
    if isinstance(method, FunctionMethod):
        return dict(method.options)
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}


def optional_types(method: Method) -> dict[str, type]:
    """The type of each option that may be `None` and is, so that a command line can set it."""
    unset = [name for name, value in method_options(method).items() if value is None]
    return {name: _first_type(annotations(type(method)).get(name)) for name in unset}


def _first_type(kind: Any) -> type:
    """`float` of `float | None`, `tuple` of `tuple[str, ...] | None`, `object` of what says nothing."""
    for part in typing.get_args(kind) or (kind,):
        base = typing.get_args(part)[0] if typing.get_origin(part) is typing.Annotated else part
        base = typing.get_origin(base) or base
        if isinstance(base, type) and base is not type(None):
            return base
    return object


def find_preset(name: str) -> Preset | None:
    """How a method is shown: one of this package, or one of a user's own that this process has made already.

    A program is never run for its label: until it has been made, its path is its name.
    """
    if name in METHODS:
        return METHODS[name][1]
    where, _, attribute = name.partition(":")
    module = sys.modules.get(_module_name(where))
    if module is None:
        return None
    for holder in [getattr(module, attribute, None)] if attribute else [module, *_classes(module)]:
        presets = getattr(holder, "presets", None)
        for preset in presets.values() if isinstance(presets, Mapping) else ():
            if isinstance(preset, Preset):
                return preset
    return None


def own_method(recorded: str, given: Sequence[str]) -> str:
    """The program of a method that a file names, if the user named that program too.

    A file from elsewhere must not choose what is run. A name of `METHODS` is taken as it is; of a program, the path
    or module is the user's, and what was recorded only tells which of several is meant: the one whose path ends as
    the recorded one does, for as many parts as any.

    Args:
      recorded: a method's name as read from a file.
      given: files and modules that the user named.

    Raises:
      ClipbiasError: the user named no such program, or several that it may be.
    """
    if recorded in METHODS:
        return recorded
    where, _, attribute = recorded.partition(":")
    # By the place of each program, so that one that was named twice is no choice.
    shared = {_absolute(own.partition(":")[0]): (_common_end(own, where), own) for own in given}
    most = max((count for count, _ in shared.values()), default=0)
    if not most:
        raise ClipbiasError(
            f"the method of this adapter is {recorded!r}, a program that is not run just because a file names it; look "
            "at it and name it yourself, with --config.own_methods (--own_methods of clipbias export) or the option "
            "own_methods."
        )
    closest = [own for count, own in shared.values() if count == most]
    if len(closest) > 1:
        raise ClipbiasError(
            f"the method of this adapter is {recorded!r}, which may be {' or '.join(closest)} of those that you named; "
            "name one of them."
        )
    return f"{closest[0].partition(':')[0]}:{attribute}" if attribute else closest[0]


def _common_end(own: str, recorded: str) -> int:
    """How many parts of two paths are the same, counted from their ends."""
    pairs = zip(reversed(Path(own.partition(":")[0]).parts), reversed(Path(recorded).parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def source_digest(name: str) -> str | None:
    """SHA-256 of a method's own program; `None` for a method of this package, or where there is none to be found."""
    where = name.partition(":")[0]
    if name in METHODS or not where:
        return None
    try:
        spec = None if where.endswith(".py") else importlib.util.find_spec(where)
        path = Path(os.path.expanduser(where)) if spec is None else Path(spec.origin or "")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ImportError, ValueError):
        return None


def _construct(kind: type[Method], name: str, options: Mapping[str, Any]) -> Method:
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


def _frozen(name: str, option: str, value: Any) -> Any:
    """Lists as tuples: a method is a static argument of compiled functions, which must be hashable."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, option, item) for item in value)
    try:
        hash(value)
    except TypeError as error:
        raise ClipbiasError(
            f"option {option!r} of method {name!r} is {value!r}; it must be a number, a text or a list of these."
        ) from error
    return value


def _module_name(where: str) -> str:
    """The key of a program in `sys.modules`: a file's own by its whole path, for others may have its name."""
    if not where.endswith(".py"):
        return where
    digest = hashlib.sha256(_absolute(where).encode("utf-8", "surrogatepass")).hexdigest()
    return f"clipbias_method_{Path(where).stem}_{digest[:12]}"


def _absolute(where: str) -> str:
    return os.path.abspath(os.path.expanduser(where))


def _import(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(os.path.expanduser(where))
        if not path.is_file():
            raise ClipbiasError(f"no file {where!r} to take a method from.")
        spec = importlib.util.spec_from_file_location(_module_name(where), path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
        return module
    except ClipbiasError:
        raise
    except Exception as error:  # a program of the user's own may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else place.lineno
        here = f", line {line}" if isinstance(error, SyntaxError) or place.filename == str(where) else ""
        raise ClipbiasError(
            f"cannot import the method's module {where!r}{here}: {type(error).__name__}: {error}."
        ) from error


def _from_module(module: ModuleType, name: str, attribute: str, options: Mapping[str, Any]) -> Method:
    if attribute:
        kind = getattr(module, attribute, None)
        if not (inspect.isclass(kind) and issubclass(kind, Method)):
            raise ClipbiasError(f"{name!r}: {attribute!r} is not a subclass of clipbias.tuning.Method there.")
        return _construct(kind, name, options)
    own = _classes(module)
    if len(own) == 1:
        return _construct(own[0], name, options)
    init, adapt = getattr(module, "init", None), getattr(module, "adapt", None)
    if not own and callable(init) and callable(adapt):
        for function in (init, adapt):
            known = inspect.signature(function).parameters
            unknown = [option for option in options if option not in known]
            if unknown and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
                raise ClipbiasError(
                    f"method {name!r} has no option {unknown[0]!r}: its {function.__name__} takes none."
                )
        return FunctionMethod(init, adapt, getattr(module, "text", None), tuple(sorted(options.items())))
    found = "neither a subclass of Method nor functions init and adapt"
    if own:
        found = f"{len(own)} subclasses of Method; pick one with '{name}:Class'"
    raise ClipbiasError(f"{name!r} holds {found}.")


def _classes(module: ModuleType) -> list[type[Method]]:
    """The methods that a module defines, not those that it imports."""
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


def find_methods() -> dict[str, tuple[type[Method], Preset]]:
    """The methods of this package by name, in their order: the presets of the classes in its modules."""
    modules = [
        importlib.import_module(f"{methods.__name__}.{found.name}") for found in pkgutil.iter_modules(methods.__path__)
    ]
    named = {
        name: (kind, preset)
        for module in modules
        for kind in _classes(module)
        for name, preset in vars(kind).get("presets", {}).items()
    }
    return dict(sorted(named.items(), key=lambda item: item[1][1].order))


METHODS.update(find_methods())
