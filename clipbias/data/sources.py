"""From a dataset's name to its images."""

import difflib
import os

from clipbias.data import folder
from clipbias.data.dataset import Dataset
from clipbias.errors import ClipbiasError


def names() -> tuple[str, ...]:
    """Every name that `load` takes as it stands."""
    from clipbias.data import demo

    return ("folder", *(f"demo/{name.removeprefix('demo/')}" for name in demo.NAMES))


def load(name: str, *, data_dir: str | os.PathLike | None = None, template: str | None = None, **options) -> Dataset:
    """Opens a dataset; images are read when they are used.

    Args:
      name: "folder" (own images, one folder per class) or "demo/...".
      data_dir: Where the images are.
      template: Prompt template with one `{}`; None takes the dataset's own.
      **options: What the source of this name takes besides.

    Raises:
      ClipbiasError: an unknown name (the nearest ones are suggested), missing or malformed files.
    """
    if name == "folder":
        return folder.load(data_dir, template=template, **options)
    if name.startswith("demo/"):
        return _demo(name, template)
    raise unknown_name(name)


def unknown_name(name: str) -> ClipbiasError:
    """The error for a name that nothing answers to, with the nearest known ones."""
    known = names()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
    return ClipbiasError(f"there is no dataset {name!r}; {hint}")


def _demo(name: str, template: str | None) -> Dataset:
    import dataclasses

    from clipbias.data import demo

    if name not in names():
        raise unknown_name(name)
    dataset = demo.load(name)
    return dataset if template is None else dataclasses.replace(dataset, template=template)
