"""Settings as fields of dataclasses: the configurations that are made of them, and the settings made of these again."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import pytest

from clipbias.checks import Positive, Range
from clipbias.errors import ClipbiasError
from clipbias.settings import as_json, convert, from_config, group, setting, setting_of, to_config


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Of devices."""

    run: Positive | None = setting(1, "Runs.")
    data: Positive | None = setting(None, "Images.")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    rate: Annotated[float, Range(0)] = setting(1, "Rate.")
    momentum: float = 0.9  # no setting


@dataclasses.dataclass(frozen=True)
class Settings:
    shots: Positive | None = setting(None, "Images per class; None takes all.")
    names: tuple[str, ...] = setting(("a",), "Names.")
    options: Mapping[str, object] = setting({}, "Options by name.")
    optimiser: Optimiser = group(Optimiser)
    mesh: Mesh = group(Mesh, flat=False)


@dataclasses.dataclass(frozen=True)
class Other:
    """Of another."""

    rate: Annotated[float, Range(0)] = setting_of(Optimiser, "rate")
    shots: Positive | None = setting(5, "Another default.")


def test_a_configuration_holds_all_settings_and_gives_them_back():
    config = to_config(Settings, names=["b"], options={"depth": None})
    assert config.to_dict() == {
        "shots": None,
        "names": ("b",),
        "options": {"depth": None},
        "rate": 1.0,
        "mesh": {"run": 1, "data": None},
    }
    config.update(shots=4, rate=2)
    config.mesh.data = 8
    settings = from_config(Settings, config)
    assert settings == Settings(4, ("b",), {"depth": None}, Optimiser(2.0), Mesh(1, 8))
    assert isinstance(settings.optimiser.rate, float)
    assert as_json(settings) == {**config.to_dict(), "names": ["b"]}
    config.shots = None
    assert config.get_type("shots") is int  # a flag can still set it
    with pytest.raises(TypeError):
        config.shots = "four"


def test_missing_settings_and_unknown_changes_are_refused():
    config = to_config(Settings)
    del config["rate"]
    with pytest.raises(ClipbiasError, match="the configuration has no rate"):
        from_config(Settings, config)
    with pytest.raises(ClipbiasError, match="there is no setting 'rates'"):
        to_config(Settings, rates=1)


def test_settings_of_another_command_take_those_of_the_same_names():
    assert convert(Settings(shots=3), Other) == Other(1.0, 3)
    assert convert(Settings(shots=3), Other, shots=None, rate=0.5) == Other(0.5, None)
