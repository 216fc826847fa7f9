"""Settings: fields of frozen dataclasses. The annotation has the type and its bounds; default and help stand beside it.

    @dataclasses.dataclass(frozen=True)
    class MeshSettings:
        run: Positive | None = setting(1, "Devices along the axis of independent runs. Default: all that are left.")

    @dataclasses.dataclass(frozen=True)
    class TrainSettings:
        shots: Positive | None = setting(16, "Training images per class. Default: all.")
        recipe: Recipe = group(Recipe)  # its settings stand beside `shots`, as `--config.learning_rate`
        mesh: MeshSettings = group(MeshSettings, flat=False)  # and these below its name, as `--config.mesh.run`

`to_config` turns such a class into the `ConfigDict` that a command line changes; `from_config` turns that into
settings, with each value checked by its annotation. A command line writes `None` as `--config.shots=None`.
"""

import dataclasses
import inspect
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from clipbias.checks import annotations, as_annotated, check_value, plain_type
from clipbias.errors import ClipbiasError

_HELP = "help"
_FLAT = "flat"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as its field defines it."""

    kind: object
    default: object
    help: str


def setting(default: object, text: str, **marks: str) -> Any:
    """A field with a default and the text that `--help` prints for it; `no_effect` as in `clipbias.identity`."""
    # Dataclasses refuse mutable defaults: each instance gets a copy.
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={_HELP: text, **marks})
    return dataclasses.field(default=default, metadata={_HELP: text, **marks})


def setting_of(kind: type, name: str, **marks: str) -> Any:
    """A field with the default and the help of another dataclass's field."""
    known = fields_of(kind)[name]
    return setting(known.default, known.help, **marks)


def group(kind: type, *, flat: bool = True) -> Any:
    """A field that holds the settings of another dataclass, in a configuration beside the others or below its name."""
    return dataclasses.field(default_factory=kind, metadata={_FLAT: flat})


def fields_of(kind: type, prefix: str = "") -> dict[str, Setting]:
    """The settings of a dataclass and of its groups by their names in a configuration, such as "mesh.run"."""
    known: dict[str, Setting] = {}
    for field, annotation, path in _settings(kind, prefix):
        if _FLAT in field.metadata:
            known |= fields_of(annotation, path)
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            known[path] = Setting(annotation, default, field.metadata[_HELP])
    return known


def to_config(kind: type, **changes: object) -> ConfigDict:
    """A configuration with a dataclass's defaults and the changes. Raises `ClipbiasError` for an unknown setting."""
    known = fields_of(kind)
    if unknown := [name for name in changes if name not in known]:
        raise ClipbiasError(f"there is no setting {unknown[0]!r}; take it out of the configuration.")
    config = ConfigDict()
    for name, field in known.items():
        *parents, last = name.split(".")
        place = config
        for parent in parents:
            if parent not in place:
                place[parent] = ConfigDict()
            place = place[parent]
        value = as_annotated(changes.get(name, field.default), field.kind)
        # A placeholder keeps the type of the other values: a command line parses by it while the value is `None`.
        if type(None) in get_args(field.kind):
            place[last] = placeholder(plain_type(field.kind))
        if value is not None:
            place[last] = ConfigDict(value) if isinstance(value, Mapping) else value
    return config


def from_config(kind: type[T], config: ConfigDict) -> T:
    """Settings from a configuration. Raises `ClipbiasError` for a missing, unknown or wrong one."""
    known = fields_of(kind)
    values = dict(_values(config, known))
    # A missing setting is no default: a configuration of another version must not change its meaning silently.
    for name, field in known.items():
        if name not in values:
            raise ClipbiasError(f"the configuration has no {name}; start from a file of configs/.")
        check_value(name, values[name], field.kind)
        values[name] = as_annotated(values[name], field.kind)
    if unknown := [name for name in values if name not in known]:
        raise ClipbiasError(f"there is no setting {unknown[0]!r}; take it out of the configuration.")
    return _make(kind, values)


def values_of(settings: object, prefix: str = "") -> dict[str, object]:
    """The values of settings by their names in a configuration."""
    by_name: dict[str, object] = {}
    for field, _, path in _settings(type(settings), prefix):
        value = getattr(settings, field.name)
        by_name |= values_of(value, path) if _FLAT in field.metadata else {path: value}
    return by_name


def as_json(settings: object) -> dict[str, Any]:
    """Settings as JSON values, as they are stored beside results."""
    # Through a `ConfigDict`, whose writer knows tuples and nested settings.
    return json.loads(to_config(type(settings), **values_of(settings)).to_json_best_effort())


def convert(settings: object, kind: type[T], **changes: object) -> T:
    """Settings of another command: values of equal names, defaults for the rest, and the changes."""
    known = fields_of(kind)
    values = {name: value for name, value in values_of(settings).items() if name in known}
    return _make(kind, {name: field.default for name, field in known.items()} | values | changes)


def headed_settings(kind: type) -> dict[str, dict[str, Setting]]:
    """The settings of a dataclass by the first line of the docstring of the class that defines them, its own first."""
    known = fields_of(kind)
    headed: dict[str, dict[str, Setting]] = {}
    for definer, name in _definers(kind, ""):
        heading = (definer.__doc__ or "").partition("\n")[0]
        # Two groups may share a setting; it stands under the first heading.
        if name in known:
            headed.setdefault(heading, {})[name] = known.pop(name)
    return headed


def _definers(kind: type, prefix: str) -> Iterator[tuple[type, str]]:
    """Each setting's name with the class that defines it: of a class, of those it inherits from, then of its groups."""
    # `__mro__` reversed: a class that defines a setting again overwrites the entry of its base.
    groups = []
    definer_of = {name: base for base in reversed(kind.__mro__) for name in inspect.get_annotations(base)}
    of_class: dict[type, list[str]] = {base: [] for base in kind.__mro__}
    for field, annotation, path in _settings(kind, prefix):
        if _FLAT in field.metadata:
            groups.append((annotation, path))
        else:
            of_class[definer_of[field.name]].append(path)
    for base, paths in of_class.items():
        yield from ((base, path) for path in paths)
    for annotation, path in groups:
        yield from _definers(annotation, path)


def settings_in(kind: type, config: ConfigDict) -> dict[str, object]:
    """The values of a configuration by the names of a dataclass's settings."""
    return dict(_values(config, fields_of(kind)))


def flatten(value: object, path: str) -> dict[str, object]:
    """A value by its path, or those within it by theirs, as `method_options.bias.depth`."""
    # An empty mapping is a value, too: no options.
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    by_path: dict[str, object] = {}
    for name, inner in value.items():
        by_path |= flatten(inner, f"{path}.{name}")
    return by_path


def _values(config: Mapping[str, Any], known: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    # A nested configuration is a group if settings stand below its name; else it is a value, such as options by method.
    for name, value in config.items():
        path = prefix + name
        if isinstance(value, ConfigDict) and any(other.startswith(f"{path}.") for other in known):
            yield from _values(value, known, f"{path}.")
        else:
            yield path, value.to_dict() if isinstance(value, ConfigDict) else value


def _make(kind: type[T], by_name: Mapping[str, object], prefix: str = "") -> T:
    arguments: dict[str, object] = {}
    for field, annotation, path in _settings(kind, prefix):
        arguments[field.name] = _make(annotation, by_name, path) if _FLAT in field.metadata else by_name[path]
    return kind(**arguments)


def _settings(kind: type, prefix: str) -> Iterator[tuple[dataclasses.Field, type, str]]:
    """The fields that are settings or groups, their annotations, and their names, or the prefix of a group's names."""
    kinds = annotations(kind)
    for field in dataclasses.fields(kind):
        if _HELP in field.metadata:
            yield field, kinds[field.name], prefix + field.name
        elif _FLAT in field.metadata:
            yield field, kinds[field.name], prefix if field.metadata[_FLAT] else f"{prefix}{field.name}."


def quoted(value: object) -> str:
    """A value as a shell takes it."""
    return f'"{value}"' if isinstance(value, tuple | Mapping) else shlex.quote(str(value))
