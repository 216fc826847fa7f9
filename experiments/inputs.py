"""Adapters, images and class names that a command line names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.constants import ADAPTER_FILE
from clipbias.data import Dataset
from clipbias.data.files import IMAGE_SUFFIXES, describe_others, image_files, warn_of_others
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.io import data_path, read_text, user_path
from clipbias.tuning.adapter import Adapter, read_adapter
from experiments.command_line import matching, split

if TYPE_CHECKING:
    from configs.distil import DistilSettings
    from configs.evaluate import EvaluateSettings
    from configs.explain import ExplainSettings
    from configs.predict import PredictSettings

AdapterFile = tuple[Adapter, str]  # an adapter and the path of its file


def find_adapters(text: str | None) -> list[AdapterFile]:
    """Reads adapters from parts separated by commas, each file once; `None` is empty.

    A part is an adapter file, a folder of `train` or `table1`, a folder of adapter files, or a pattern with `*`. Raises
    `ClipbiasError` for a part without adapters, or a damaged adapter.
    """
    files: dict[Path, None] = {}
    for part in split(text):
        inside = [file for place in matching(part) for file in _files(user_path(place))]
        if not inside:
            raise ClipbiasError(f"{part} holds no adapter; give adapter files, or folders of finished runs.")
        files |= dict.fromkeys(inside)
    return [(read_adapter(file), str(file)) for file in files]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / ADAPTER_FILE).exists():
        return [path / ADAPTER_FILE]
    return sorted(file for pattern in ("adapters/*.safetensors", "*.safetensors") for file in path.glob(pattern))


def find_adapter(text: str | None) -> AdapterFile | None:
    """Reads the adapter of a command that takes one, or `None`. Raises `ClipbiasError` for several."""
    adapters = find_adapters(text)
    if len(adapters) > 1:
        raise ClipbiasError(
            f"--config.adapters names {len(adapters)} adapters, {adapters[0][1]} and others; this command takes one."
        )
    return adapters[0] if adapters else None


def open_adapter(
    adapter: Adapter,
    clip: Clip,
    settings: "PredictSettings | EvaluateSettings | DistilSettings | ExplainSettings",
    *,
    dtype: str | None = None,
) -> TunedModel:
    """Binds an adapter, with the user's own methods that the settings name; `dtype` is used where they name none.

    Raises `ClipbiasError` for another template than the adapter's, and as `Adapter.bind` does.
    """
    own_methods = split(settings.own_methods)
    model = TunedModel.of(adapter.bind(clip, own_methods=own_methods, dtype=settings.dtype or dtype))
    if settings.template not in (None, model.task.template):
        raise ClipbiasError(
            f"the adapter has the template {model.task.template!r}, not {settings.template!r}; leave out "
            "--config.template."
        )
    return model


def refuse_other_descriptions(model: TunedModel, dataset: Dataset) -> None:
    """Raises `ClipbiasError` for descriptions that are not the adapter's, where it is studied as it was trained."""
    given, own = dataset.descriptions, model.task.classes.descriptions
    if given is not None and identity(given) != identity(own):
        raise ClipbiasError(
            "--config.descriptions are not the texts of the adapter; leave them out, or see what they change with "
            "`clipbias evaluate`."
        )


def find_images(text: str | None, setting: str = "images") -> list[Path]:
    """Finds image files, and visible ones in folders, in the given order and by name."""
    files: list[Path] = []
    # A name may have a comma: a path that exists as it stands is one file.
    whole = data_path(text) if text is not None and "," in text else None
    parts = split(text)
    if whole is not None and (whole.is_file() or whole.is_dir()):
        parts = [str(whole)]
    for part in parts:
        path = data_path(part)
        if path.is_dir():
            names, others = image_files(path)
            if not names:
                others_words = f"; it holds {describe_others(others)}" if others else ""
                raise ClipbiasError(
                    f"the folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}){others_words}."
                )
            warn_of_others(path, others)
            files += [path / name for name in names]
        elif path.is_file():
            files.append(path)
        else:
            hint = "; commas separate names, so give the folder of a name that has one" if whole is not None else ""
            raise ClipbiasError(f"there is no image or folder {path}{hint}.")
    if not files:
        raise ClipbiasError(f"there are no images; give --config.{setting}=FILE_OR_FOLDER.")
    return files


def listed(setting: str | None, what: str) -> tuple[str, ...] | None:
    """Reads names or texts, separated by commas or from a file with one per line; `None` gives `None`."""
    if setting is None:
        return None
    if os.path.isfile(path := os.path.expanduser(setting)):
        items = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    elif setting.endswith(".txt"):
        raise ClipbiasError(f"there is no file of {what} {setting}.")
    else:
        items = tuple(split(setting))
    if not items:
        raise ClipbiasError(f"{setting!r} holds no {what}; give one per line, or separate them by commas.")
    return items
