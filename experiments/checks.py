"""What the values of a configuration must be, told before any work begins.

Types are those of the binary's own configuration file; ranges and choices are below. What a part of the library checks
by itself when it is made (the recipe, a study's options) is left to it.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipbias import checks
from clipbias.clip.precision import DTYPES
from clipbias.data.pipeline import ON_ERROR
from clipbias.errors import ClipbiasError

# Least and largest value of whole numbers; others are from 0 on.
RANGES: Mapping[str, tuple[int, int]] = {
    "batch_size": (1, checks.LARGEST),
    "eval_batch_size": (1, checks.LARGEST),
    "epochs": (1, checks.LARGEST),
    "top": (1, checks.LARGEST),
    "chunk": (1, checks.LARGEST),
    "rotations": (-360, 360),
    "start_layer": (-checks.LARGEST, checks.LARGEST),
    "mesh.run": (-1, checks.LARGEST),
    "mesh.data": (-1, checks.LARGEST),
}
CHOICES: Mapping[str, tuple[str, ...]] = {"dtype": DTYPES, "on_image_error": ON_ERROR}
# Of lists that are empty in the configuration files: the type of their items.
ITEMS: Mapping[str, type] = {"layers": int, "learning_rates": float}


def check(config: ConfigDict, like: ConfigDict, *, prefix: str = "") -> None:
    """Compares a configuration with the one that its binary is made for.

    Args:
      config: what is to be run.
      like: the binary's own configuration.
      prefix: where in the whole configuration this part stands.

    Raises:
      ClipbiasError: a setting is missing, or its value is of another type, out of range or not among the choices.
    """
    for name, own in like.items():
        where = f"{prefix}{name}"
        if name not in config:
            raise ClipbiasError(f"the configuration has no {where}; start from one of configs/.")
        value = config[name]
        if name == "method_options":
            check_options(where, value)
        elif isinstance(own, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise ClipbiasError(f"{where} is {checks.shown(value)}; it must hold {', '.join(own)}.")
            check(value, own, prefix=f"{where}.")
            for unknown in set(value) - set(own):
                raise ClipbiasError(f"{prefix}{name} has no {unknown!r}; it holds {', '.join(own)}.")
        elif isinstance(own, tuple | list):
            if not isinstance(value, tuple | list):
                raise ClipbiasError(f"{where} is {checks.shown(value)}; it must be a list, such as {list(own)!r}.")
            kind = type(own[0]) if own else ITEMS.get(name, str)
            for item in value:
                check_value(where, item, kind)
        else:
            check_value(where, value, type(own))


def check_value(name: str, value: Any, kind: type) -> None:
    """One value, or one item of a list."""
    if name in CHOICES:
        checks.one_of(name, value, CHOICES[name])
    elif kind is int:
        lowest, highest = RANGES.get(name, (0, checks.LARGEST))
        checks.whole(name, value, lowest=lowest, highest=highest)
    elif kind is float:
        checks.number(name, value, lowest=0)
    elif kind is bool:
        if not isinstance(value, bool):
            raise ClipbiasError(f"{name} is {checks.shown(value)}; it must be True or False.")
    elif kind is str:
        checks.text(name, value)


def check_options(where: str, value: Any) -> None:
    """Options are named by texts; what they must be, the method knows."""
    if not isinstance(value, ConfigDict | dict) or not all(isinstance(name, str) for name in value):
        raise ClipbiasError(f"{where} is {checks.shown(value)}; it must hold options by name.")


def options_by_method(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The options of a grid's methods as plain dictionaries. Raises `ClipbiasError` where a method's are none."""
    found = {}
    for name, values in config.method_options.items():
        check_options(f"method_options.{name}", values)
        found[name] = dict(values)
    return found
