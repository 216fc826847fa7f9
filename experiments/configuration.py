"""What the settings of a configuration must be, told before any work begins.

Types are those of the binary's own configuration file; what is narrower than these is listed below. What a part of the
library checks by itself when it is made (the recipe, a study's options) is left to it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from ml_collections import ConfigDict

from clipbias.checks import LARGEST, Choices, Count, Positive, Range, check_value, shown
from clipbias.clip.precision import CHOICES
from clipbias.data.pipeline import ON_ERROR
from clipbias.data.workers import MOST_WORKERS
from clipbias.errors import ClipbiasError
from clipbias.training.profile import PROFILES
from clipbias.training.rates import CHOICES as CHOICES_OF_RATES

ON_MISSING = ("raise", "skip")

_Number = Annotated[float, Range(0)]
_Devices = Annotated[int, Range(-1, LARGEST)]

KINDS: Mapping[str, Any] = {
    "batch_size": Positive,
    "eval_batch_size": Positive,
    "epochs": Positive,
    "top": Positive,
    "chunk": Positive,
    "rotations": tuple[Annotated[int, Range(-360, 360)], ...],
    "start_layer": Annotated[int, Range(-LARGEST, LARGEST)],
    "mesh.run": _Devices,
    "mesh.data": _Devices,
    # Empty in the configuration files, so that they have no item to show its type.
    "layers": tuple[Count, ...],
    "learning_rates": tuple[_Number, ...],
    "choose": Annotated[str, Choices(CHOICES_OF_RATES)],
    "dtype": Annotated[str, Choices(CHOICES)],
    "on_image_error": Annotated[str, Choices(ON_ERROR)],
    "on_missing": Annotated[str, Choices(ON_MISSING)],
    "profile": Annotated[str, Choices(PROFILES)],
    "workers": Annotated[int, Range(0, MOST_WORKERS)],
}


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
        if name == "method_options":  # what they must be, the method knows
            _check_options(where, value)
        elif isinstance(own, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise ClipbiasError(f"{where} is {shown(value)}; it must hold {', '.join(own)}.")
            check(value, own, prefix=f"{where}.")
            for unknown in set(value) - set(own):
                raise ClipbiasError(f"{where} has no {unknown!r}; it holds {', '.join(own)}.")
        else:
            kind = KINDS.get(where) or _kind(own)
            # A file whose own value is 0 leaves the choice to the program.
            check_value(where, value, Count if kind is Positive and own == 0 else kind)
    if not prefix and config.get("topology") and not config.get("dry_run"):
        raise ClipbiasError(f"nothing can be run on {config.topology}; add --config.dry_run, or leave topology empty.")


def _kind(own: Any) -> Any:
    """The type that a setting has by the value in its file: numbers from 0 on, lists of such or of texts."""
    if isinstance(own, tuple | list):
        return tuple[_kind(own[0] if own else ""), ...]  # type: ignore[misc]
    return {int: Count, float: _Number}.get(type(own), type(own))


def _check_options(where: str, value: Any) -> None:
    if not isinstance(value, ConfigDict | dict) or not all(isinstance(name, str) for name in value):
        raise ClipbiasError(f"{where} is {shown(value)}; it must hold options by name.")


def options_by_method(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The options of a grid's methods as plain dictionaries. Raises `ClipbiasError` where a method's are none."""
    found = {}
    for name, values in config.method_options.items():
        _check_options(f"method_options.{name}", values)
        found[name] = dict(values)
    return found
