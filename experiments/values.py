"""What the settings of a configuration may be: their types are those of its file, ranges and choices are listed here.

What a part of the library checks by itself (the recipe, a study's options) is left to it.
"""

from typing import Annotated, Any

from ml_collections import ConfigDict

from clipbias.checks import LARGEST, Choices, Count, Positive, Range, check_value, shown
from clipbias.data.protocols import PROTOCOLS
from clipbias.errors import ClipbiasError

_Number = Annotated[float, Range(0)]
_Devices = Annotated[int, Range(-1, LARGEST)]

OPTIONS = "method_options"  # which the methods check
KINDS: dict[str, Any] = {
    **dict.fromkeys(("batch_size", "eval_batch_size", "top", "most_classes"), Positive),
    "mesh.run": _Devices,
    "mesh.data": _Devices,
    "workers": Annotated[int, Range(0, 1024)],
    "start_layer": Annotated[int, Range(-LARGEST, LARGEST)],
    "rotations": tuple[Annotated[int, Range(-360, 360)], ...],
    # Empty in the configuration files: they have no item to show its type.
    "layers": tuple[Count, ...],
    "learning_rates": tuple[_Number, ...],
    "on_image_error": Annotated[str, Choices(("raise", "skip"))],
    "on_missing": Annotated[str, Choices(("raise", "skip"))],
    "choose": Annotated[str, Choices(("method", "cell", "none"))],
    "profile": Annotated[str, Choices(("", "steps"))],
    "action": Annotated[str, Choices(("check", "build", "draw"))],
    "protocol": Annotated[str, Choices(tuple(PROTOCOLS))],
    "score_on": Annotated[str, Choices(("test", "validation"))],
}


def check_config(config: ConfigDict, own: ConfigDict) -> None:
    """Compares a configuration with the one in `configs/` that its binary is made for.

    Raises:
      ClipbiasError: a setting is missing or unknown, or its value is of another type, out of range or no choice.
    """
    values, known = (
        {name: x for name, x in flat(one).items() if not name.startswith(OPTIONS)} for one in (config, own)
    )
    if not isinstance(config.get(OPTIONS, own), ConfigDict):
        raise ClipbiasError(f"{OPTIONS} is {shown(config.method_options)}; it must hold options by name.")
    for name, default in known.items():
        if name not in values:
            raise ClipbiasError(f"the configuration has no {name}; start from a file of configs/.")
        kind = KINDS.get(name) or _kind(default)
        # A file whose own value is 0 leaves the choice to the program.
        check_value(name, values[name], Count if kind is Positive and default == 0 else kind)
    for name in values:
        if name not in known:
            raise ClipbiasError(f"there is no setting {name!r}; take it out of the configuration.")
    if config.get("topology") and not config.get("dry_run"):
        raise ClipbiasError(f"nothing can be run on {config.topology}; add --config.dry_run, or leave topology empty.")


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their names, with dots."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _kind(default: Any) -> Any:
    """Numbers from 0 on, or lists of such numbers or of texts."""
    if isinstance(default, tuple | list):
        return tuple[_kind(default[0] if default else ""), ...]  # type: ignore[misc]
    return {int: Count, float: _Number}.get(type(default), type(default))
