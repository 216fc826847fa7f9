"""Reading the adapters that a user names on a command line."""

from collections.abc import Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.training.workdir import ADAPTER
from clipbias.tuning.adapter import Adapter, read_adapter
from experiments.command_line import matching, split

AdapterFile = tuple[Adapter, str]  # an adapter, and where its file is


def find_adapters(text: str | None) -> list[AdapterFile]:
    """Adapters, from parts separated by commas, each file once; none for `None`.

    A part is an adapter file, a folder of `experiments.train` or `experiments.table1`, a folder of adapter files, or a
    pattern with `*` that matches such files and folders.

    Raises:
      ClipbiasError: a part names no adapter, or one is damaged.
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
    if (path / ADAPTER).exists():
        return [path / ADAPTER]
    return sorted(file for pattern in ("adapters/*.safetensors", "*.safetensors") for file in path.glob(pattern))


def find_adapter(text: str | None) -> AdapterFile | None:
    """The adapter for a command that takes one, or `None` where none is named.

    Raises:
      ClipbiasError: several are named, or as in `find_adapters`.
    """
    adapters = find_adapters(text)
    if len(adapters) > 1:
        raise ClipbiasError(
            f"--config.adapters names {len(adapters)} adapters, {adapters[0][1]} and others; this command takes one."
        )
    return adapters[0] if adapters else None


def by_dataset(adapters: Sequence[AdapterFile], datasets: Sequence[str] | None) -> dict[str, list[AdapterFile]]:
    """Adapters by the dataset that they were trained on.

    Args:
      adapters: to be divided.
      datasets: the adapters of other datasets are left out; `None` takes all.

    Raises:
      ClipbiasError: an adapter does not say on which dataset it was trained, or a wanted dataset has no adapter.
    """
    groups: dict[str, list[AdapterFile]] = {name: [] for name in datasets or ()}
    for adapter, source in adapters:
        name = str(adapter.notes.get("dataset") or "")
        if not name:
            raise ClipbiasError(f"{source} does not say on which dataset it was trained; give --config.dataset=NAME.")
        if datasets is None or name in groups:
            groups.setdefault(name, []).append((adapter, source))
    if missing := [name for name, group in groups.items() if adapters and not group]:
        raise ClipbiasError(f"none of --config.adapters was trained on {missing[0]}; leave it out of the datasets.")
    return groups
