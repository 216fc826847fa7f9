"""Methods in a user's own file or module: a subclass of `Method`.

A file or module runs only if the user named it. An adapter that names one is matched with those that the user named.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Method


def is_user_method(name: str) -> bool:
    """Whether a method's name is a file (`own.py`) or module (`package.own`), with `…:Class` for one of several."""
    where, _, attribute = name.partition(":")
    return where.endswith(".py") or "." in where or bool(attribute)


def load_user_method(name: str) -> type[Method]:
    """Runs a user's file or module. Returns its subclass of `Method`.

    Raises:
      ClipbiasError: there is no such file or module, it fails, or it holds no method.
    """
    where, _, attribute = name.partition(":")
    module = _import(where)
    if attribute:
        kind = getattr(module, attribute, None)
        if not (inspect.isclass(kind) and issubclass(kind, Method)):
            raise ClipbiasError(f"{name!r}: {attribute!r} is not a subclass of clipbias.tuning.Method there.")
        return kind
    kinds = classes(module)
    if not kinds:
        raise ClipbiasError(f"{name!r} defines no subclass of clipbias.tuning.Method; write one (docs/methods.md).")
    if len(kinds) > 1:
        raise ClipbiasError(f"{name!r} holds {len(kinds)} subclasses of Method; pick one with '{name}:Class'.")
    return kinds[0]


def loaded_user_method(name: str) -> type[Method] | None:
    """The earlier result of `load_user_method` in this process, or `None`. Runs nothing."""
    where, _, attribute = name.partition(":")
    module = sys.modules.get(_module_name(where))
    if module is None:
        return None
    kind = getattr(module, attribute, None) if attribute else next(iter(classes(module)), None)
    return kind if inspect.isclass(kind) and issubclass(kind, Method) else None


def classes(module: ModuleType) -> list[type[Method]]:
    """The subclasses of `Method` that a module defines, without imported ones."""
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


def user_method_name(method: Method) -> str | None:
    """The file or module that a method was made from; `None` without one, as in a notebook."""
    kind = type(method)
    module = sys.modules.get(kind.__module__)
    if module is None or module.__name__ == "__main__" or "." in kind.__qualname__:
        return None
    where = str(module.__file__) if module.__name__.startswith(_PREFIX) else module.__name__
    return f"{where}:{kind.__qualname__}"


def source_digest(name: str) -> str | None:
    """SHA-256 of a user's file or module; `None` for a built-in method, or if there is no such file."""
    where = name.partition(":")[0]
    if not is_user_method(name):
        return None
    try:
        spec = None if where.endswith(".py") else importlib.util.find_spec(where)
        path = Path(os.path.expanduser(where)) if spec is None else Path(spec.origin or "")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ImportError, ValueError):
        return None


def match_user_method(recorded: str, allowed: Sequence[str]) -> str:
    """The user's file or module for a method that an adapter names.

    An adapter must not decide which code runs. The path or module is always one that the user named. The adapter only
    selects among them: the path that shares the longest end with the recorded one.

    Args:
      recorded: the method's name in the adapter.
      allowed: files and modules that the user named.

    Raises:
      ClipbiasError: none of these fits, or several do.
    """
    where, _, attribute = recorded.partition(":")
    # By absolute path, so that naming a file twice is not ambiguous.
    candidates = {_absolute(name.partition(":")[0]): (_common_end(name, where), name) for name in allowed}
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


def _common_end(name: str, recorded: str) -> int:
    """Number of equal parts of two paths, counted from their ends."""
    pairs = zip(reversed(Path(name.partition(":")[0]).parts), reversed(Path(recorded).parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


_PREFIX = "clipbias_method_"


def _module_name(where: str) -> str:
    """The key in `sys.modules`. A file's key depends on its whole path, because files may share a name."""
    if not where.endswith(".py"):
        return where
    digest = hashlib.sha256(_absolute(where).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_PREFIX}{Path(where).stem}_{digest[:12]}"


def _absolute(where: str) -> str:
    return os.path.abspath(os.path.expanduser(where))


def _import(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(_absolute(where))
        if not path.is_file():
            raise ClipbiasError(f"no file {where!r} to take a method from.")
        return _execute(path, path.read_bytes())
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


@functools.cache
def _execute(path: Path, source: bytes) -> ModuleType:
    """Runs a file once for each content, so that all callers get the same class and share compiled programs."""
    spec = importlib.util.spec_from_file_location(_module_name(str(path)), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
