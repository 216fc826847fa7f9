"""A folder to put on a Hugging Face Space: the page with its adapters and pictures."""

import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import atomic_folder, write_text
from clipbias.tuning.adapter import FILE
from clipbias.version import __version__

PROGRAM = '''"""Made by `clipbias app --space`."""

from pathlib import Path

import clipbias
from clipbias import app

HERE = Path(__file__).parent
ADAPTERS = {{path.stem: clipbias.load_adapter(path) for path in sorted((HERE / "adapters").glob("*.safetensors"))}}

page = app.build(
    app.Bench(clipbias.load({model!r}), ADAPTERS),
    examples=sorted((HERE / "examples").glob("*")),
    class_names={class_names!r},
    template={template!r},
)

if __name__ == "__main__":
    app.serve(page, allowed_paths=[str(HERE / "examples")])
    page.block_thread()
'''
CARD = """---
title: {title}
emoji: 🔍
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
models: {models}
---

What CLIP takes a picture for, zero-shot and tuned, and which patches and words that rests on. Made with clipbias by
`clipbias app --space`.
"""


def write_space(
    folder: str | os.PathLike,
    model: str,
    adapters: Sequence[str | os.PathLike] = (),
    examples: Sequence[str | os.PathLike] = (),
    *,
    class_names: Sequence[str] = (),
    template: str = "",
    requirement: str = "",
) -> None:
    """Writes `app.py`, `requirements.txt`, `README.md`, and copies of the adapters and pictures beside them.

    Args:
      folder: appears when all is written; it must not exist, or be empty.
      model: what `clipbias.load` takes there: "demo", or a name on the Hugging Face hub.
      adapters: files, of that model.
      examples: files of pictures.
      class_names, template: what the page's fields hold at first.
      requirement: how pip finds this package there; by default its name and version.

    Raises:
      ClipbiasError: the model is a folder of this machine, gradio is not installed, or the folder is not empty or
        cannot be written.
    """
    if Path(model).exists():
        raise ClipbiasError(
            f"the model {model} lies on this machine, where a Space does not find it; upload it to the Hugging Face "
            "hub and give --config.model=OWNER/NAME."
        )
    name = model.partition("@")[0]
    filled = dict(model=model, class_names=list(class_names), template=template)
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise ClipbiasError(
            'a Space asks for the version of gradio that is installed, and none is; pip install "clipbias[app]".'
        ) from error
    card = dict(title="Zero-shot beside tuned", gradio=gradio, models=f"[{name}]" if "/" in name else "[]")
    with atomic_folder(folder) as written:
        write_text(written / "app.py", PROGRAM.format(**filled))
        write_text(written / "requirements.txt", f"{requirement or f'clipbias[app]=={__version__}'}\n")
        write_text(written / "README.md", CARD.format(**card))
        for inner, files in (("adapters", adapters), ("examples", examples)):
            (written / inner).mkdir()
            for number, path in enumerate(map(Path, files)):
                own = path.parent if path.name == FILE else path  # runs' adapters are all called the same
                kept = f"{own.stem}{path.suffix}"
                if (written / inner / kept).exists():
                    kept = f"{own.stem}-{number}{path.suffix}"
                shutil.copyfile(path, written / inner / kept)
