"""From a dataset's name to its images."""

import difflib
import os
from typing import Any

from clipbias.checks import check_text
from clipbias.data import benchmark, catalog, demo, folder, tables
from clipbias.data.dataset import Dataset
from clipbias.errors import ClipbiasError
from clipbias.io import data_path, shorten

# Pictures of a user's own.
OWN = ("folder", "csv")


def names() -> tuple[str, ...]:
    """Every name that `load` takes as it stands; "tfds/" and a builder's name is another."""
    return (*OWN, *demo.NAMES, *catalog.ENTRIES)


def is_name(name: str) -> bool:
    """Whether it is the name of a dataset and no path."""
    return name in names() or name.startswith(("demo/", "tfds/"))


def load(
    name: str, /, *, data_dir: str | os.PathLike | None = None, template: str | None = None, **options: Any
) -> Dataset:
    """Opens a dataset; images are read when they are used.

    | name | `data_dir` | options |
    | --- | --- | --- |
    | "demo/..." | | |
    | a catalogue name: "eurosat" | all datasets in CoOp's layout, or their shards | `index_file` |
    | "tfds/..." and a catalogue or builder name | TFDS's data folder | `split`, `split_dir` |
    | "folder" | one folder per class, optionally below train/ val/ test/, or images with metadata.jsonl | |
    | "csv" | a .csv or .jsonl file with path, label and optionally split | `class_names`, `path_column`, ... |

    Args:
      name: Which dataset.
      data_dir: Where the images are.
      template: Prompt template with one `{}`; None takes the dataset's own.
      **options: What the source of this name takes besides.

    Raises:
      ClipbiasError: an unknown name (the nearest ones are suggested), an option that this source does not take,
        missing or malformed files.
    """
    check_text("the name of a dataset", name)
    if "name" in options:
        raise ClipbiasError("a dataset takes no option 'name'; see the table in clipbias.data.load.")
    try:
        if name == "folder":
            if data_dir is not None and tables.has_metadata(data_path(data_dir)):
                return tables.load_metadata(data_path(data_dir), template=template, **options)
            return folder.load(data_dir, template=template, **options)
        if name == "csv":
            return tables.load(data_dir, template=template, **options)
        if name.startswith("tfds/"):
            from clipbias.data import tfds_source

            return tfds_source.load(name, data_dir, template=template, **options)
        if name in catalog.ENTRIES:
            return _catalogue(name, data_dir, template, **options)
        if name in demo.NAMES:
            return demo.load(name, template=template, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rsplit("argument ", 1)[1]
        raise ClipbiasError(f"dataset {name} takes no option {option}; see the table in clipbias.data.load.") from error
    raise unknown_name(name)


def unknown_name(name: str) -> ClipbiasError:
    """The error for a name that nothing answers to, with the nearest known ones."""
    known = names()
    if os.sep in name and not name.startswith(("demo/", "tfds/")):
        return ClipbiasError(f"there is no dataset and no folder {shorten(name)!r}; check the path.")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
    return ClipbiasError(f"there is no dataset {shorten(name)!r}; {hint}")


def _catalogue(name: str, data_dir: str | os.PathLike | None, template: str | None, /, **options: Any) -> Dataset:
    from clipbias.data import shards

    if data_dir is not None and (built := shards.find(name, data_path(data_dir))) is not None:
        return shards.load(built, template=template, **options)
    return benchmark.load(catalog.ENTRIES[name], data_dir, template=template, **options)
