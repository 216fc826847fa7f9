"""Opens a page to try models: a picture and class names, zero-shot beside tuned, and the relevancy maps of both.

    python -m experiments.app
    python -m experiments.app --config.adapters=workdir/demo/adapters
    python -m experiments.app --config.adapters=workdir/own --config.images=photos

Runs until it is stopped. Needs the extra `app`.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import clipbias
from clipbias import hosts
from clipbias.app import Bench, build, serve
from clipbias.constants import ADAPTER_FILE
from clipbias.errors import ClipbiasError
from clipbias.settings import as_json
from clipbias.training.workdir import open_workdir
from clipbias.tuned_model import TunedModel
from clipbias.tuning.adapter import Adapter
from configs.app import AppSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapters, find_images, listed

_SECONDS = 0.2  # between two checks for a notice to stop


def main(settings: AppSettings, workdir: Path) -> None:
    adapters = find_adapters(settings.adapters)
    bases = dict.fromkeys(adapter.base for adapter, _ in adapters)
    if len(bases) > 1 and not settings.model:
        raise ClipbiasError(f"the adapters are of several models, {', '.join(bases)}; give those of one.")
    model = settings.model or next(iter(bases), "demo")
    class_names = listed(settings.classes, "class names") or ()
    with open_workdir(workdir, as_json(settings)):
        examples = find_images(settings.images) if settings.images is not None else []
        uploads = (workdir / "uploads").resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # gradio reads it when it is imported
        clip = clipbias.load(model)
        own_methods = split(settings.own_methods)
        models = {
            name: TunedModel.of(adapter.bind(clip, own_methods=own_methods))
            for name, adapter in named(adapters).items()
        }
        bench = Bench(clip, models, own_methods=own_methods)
        page = build(bench, examples=examples, class_names=class_names, template=settings.template or "")
        address = serve(
            page,
            server_name=settings.host,
            server_port=settings.port,
            prevent_thread_lock=True,
            allowed_paths=[str(path.resolve()) for path in examples],
        )
        try:
            common.tell(f"the page is at {address}; Ctrl-C ends it")
            # The server runs in a thread; this one waits for a notice to stop.
            while True:
                hosts.check()
                time.sleep(_SECONDS)
        finally:
            page.close(verbose=False)
            shutil.rmtree(uploads, ignore_errors=True)


def named(adapters: Sequence[tuple[Adapter, str]]) -> dict[str, Adapter]:
    """Names adapters by their file or its folder; by the whole path where several have the same name."""
    by_name: dict[str, Adapter] = {}
    for adapter, source in adapters:
        path = Path(source)
        name = path.parent.name if path.name == ADAPTER_FILE else path.stem
        by_name[source if name in by_name or not name else name] = adapter
    return by_name


if __name__ == "__main__":
    common.run(main)
