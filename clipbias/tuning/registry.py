"""Methods by name: the built-in ones, presets of them, and a user's own file or module."""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from clipbias.checks import annotations, check_value
from clipbias.clip import Adaptation, Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.bias import BiasTuning
from clipbias.tuning.coop import CoOp
from clipbias.tuning.ivlp import IVLP
from clipbias.tuning.maple import MaPLe
from clipbias.tuning.method import Learnables, Method, PromptText
from clipbias.tuning.taskres import TaskRes
from clipbias.tuning.vpt import VPT
from clipbias.tuning.zero_shot import ZeroShot

# Name: class and the options that make it a preset.
METHODS: Mapping[str, tuple[type[Method], Mapping[str, Any]]] = {
    "zero_shot": (ZeroShot, {}),
    "coop": (CoOp, {}),
    "coop_16": (CoOp, {"tokens": 16}),
    "vpt": (VPT, {}),
    "vpt_shallow": (VPT, {"depth": 1}),
    "ivlp": (IVLP, {}),
    "ivlp_9": (IVLP, {"depth": 9}),
    "ivlp_2_2": (IVLP, {"depth": 9, "text_tokens": 2, "vision_tokens": 2}),
    # As many parameters as bias tuning: one token per layer and tower.
    "ivlp_matched": (IVLP, {"text_tokens": 1, "vision_tokens": 1}),
    "maple": (MaPLe, {}),
    "taskres": (TaskRes, {}),
    "bias": (BiasTuning, {}),
}


@dataclasses.dataclass(frozen=True)
class FunctionMethod(Method):
    """A method made of a module's plain functions.

    They are `init(rng, clip, class_names, **options)` and `adapt(learnables, **options)`.
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
        return _construct(kind, name, {**preset, **options})
    where, _, attribute = name.partition(":")
    if where.endswith(".py") or "." in where or attribute:
        return _from_module(_import(where), name, attribute, options)
    close = difflib.get_close_matches(name, METHODS, 1)
    raise ClipbiasError(
        f"unknown method {name!r}"
        + (f"; did you mean {close[0]!r}?" if close else "")
        + f" Methods: {', '.join(METHODS)}, "
        "or the path of a Python file of your own."
    )


def own_method(recorded: str, given: Sequence[str]) -> str:
    """The program of a method that a file names, if the user named that program too.

    A file from elsewhere must not choose what is run. A name of `METHODS` is taken as it is; of a program, the path
    or module is the user's, and what was recorded only tells which of several is meant: by its last part.

    Args:
      recorded: a method's name as read from a file.
      given: files and modules that the user named.

    Raises:
      ClipbiasError: the user named no such program.
    """
    if recorded in METHODS:
        return recorded
    where, _, attribute = recorded.partition(":")
    for own in given:
        place = own.partition(":")[0]
        if Path(place).name == Path(where).name:
            return f"{place}:{attribute}" if attribute else own
    raise ClipbiasError(
        f"the method of this adapter is {recorded!r}, a program that is not run just because a file names it; look at "
        "it and name it yourself, with --config.own_methods (--own_methods of tools.export) or the option own_methods."
    )


def source_digest(name: str) -> str | None:
    """SHA-256 of a method's own program; `None` for a method of this package, or where there is none to be found."""
    where = name.partition(":")[0]
    if name in METHODS or not where:
        return None
    try:
        spec = None if where.endswith(".py") else importlib.util.find_spec(where)
        path = Path(where).expanduser() if spec is None else Path(spec.origin or "")
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


def _import(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise ClipbiasError(f"no file {where!r} to take a method from.")
        spec = importlib.util.spec_from_file_location(f"clipbias_method_{path.stem}", path)
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
    own = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
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
