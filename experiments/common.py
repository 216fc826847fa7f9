"""Frame of every binary's main function: flags, start-up, one sentence for a user's mistake, exit status."""

import dataclasses
import faulthandler
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from absl.logging import DEBUG, get_absl_handler, get_verbosity, use_absl_handler
from ml_collections import ConfigDict
from tqdm import tqdm

from clipbias import hosts
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.io import BROKEN_DISK, NOT_ALLOWED, data_path, read_json, reason
from clipbias.settings import as_json, from_config
from clipbias.terminal import printable, quiet_when_closed
from experiments.command_line import WORKDIR, binary_of, parse, refuse, settings_type

if TYPE_CHECKING:
    from clipbias.data import Dataset
    from clipbias.tuning import Descriptions
    from configs._common import DatasetSettings, InputSettings

# Device files of NVIDIA GPUs, AMD GPUs and TPUs.
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def run(main: Callable[..., int | None], default: str | None = None) -> None:
    """Runs `main(settings, workdir)`, or `main(settings)` where settings have no `workdir`; see `answer`.

    `--config=FILE` names the configuration. Default: `default`, or the file in `configs/` with the binary's name.
    """

    def guarded(words: list[str]) -> int:
        config: ConfigDict = flags.FLAGS.config
        if len(words) > 1:
            refuse(f"unexpected argument {words[1]!r}; settings are given as --config.name=value.")
        if "workdir" not in config and WORKDIR.value:
            refuse(f"{binary_of(main)} has no --workdir; see --help.")
        if "workdir" in config and (status := status_of(start)):
            return status
        status = answer(main, config, WORKDIR.value)
        if status:
            hosts.silence()
        return status

    quiet()
    with quiet_when_closed():
        file = default or f"configs/{binary_of(main)}.py"
        app.run(guarded, flags_parser=lambda words: parse(words, main, default=file))


def answer(main: Callable[..., int | None], config: ConfigDict, workdir: str | None = None) -> int:
    """Runs `main` with settings from the configuration, and returns the exit status; see `status_of`.

    A binary without the setting `workdir` writes no work folder and needs no device. An argument `workdir` takes
    precedence over the setting.
    """

    def work() -> int | None:
        settings: object = from_config(settings_type(main), config)
        with hosts.stoppable():
            if "workdir" not in config:
                return main(settings)
            resolved = _resolve(main, settings, workdir)
            return main(resolved, data_path(resolved.workdir or "."))

    return status_of(work)


def _resolve(main: Callable[..., int | None], settings: Any, workdir: str | None) -> Any:
    """Completes the settings with work folder and compute type, and prints where everything is written."""
    # Imported here, since they import JAX, which binaries without a work folder start without.
    from clipbias.clip import precision
    from clipbias.training.progress import say
    from clipbias.training.workdir import CONFIG

    folder = workdir or settings.workdir
    dry_run = getattr(settings, "dry_run", False)
    if folder is None and not dry_run:
        raise ClipbiasError("no folder to write to; give --workdir=FOLDER.")
    settings = dataclasses.replace(settings, workdir=folder)
    if hasattr(settings, "dtype"):
        dtype = settings.dtype or (None if getattr(settings, "adapters", None) else "float32")
        if dtype is not None and getattr(settings, "topology", None) is None:
            dtype = precision.resolve(dtype)
        settings = dataclasses.replace(settings, dtype=dtype)
    if getattr(settings, "on_image_error", "raise") is None:
        file = None if folder is None else data_path(folder) / CONFIG
        earlier = read_json(file, dict) if file is not None and file.exists() else {}
        remembered = earlier.get("on_image_error") or "raise"
        settings = dataclasses.replace(settings, on_image_error=remembered)
        if hasattr(settings, "study"):
            options = dataclasses.replace(settings.study, on_image_error=remembered)
            settings = dataclasses.replace(settings, study=options)
        if remembered == "skip":
            say(f"broken images are skipped, as before in {folder}; --config.on_image_error=raise ends this")
    # Each host may have its own path to the same folder.
    hosts.assert_same("the configuration", {**as_json(settings), "workdir": None})
    if not dry_run and not getattr(settings, "compare", False):
        output = getattr(settings, "output", None)
        places = f"everything is written to {folder}"
        if output is not None:
            places = f"the result is written to {output}, everything else to {folder}"
        begins = "; loading the model" if hasattr(settings, "model") else ""
        say(f"{binary_of(main)}: {places}, the settings to {CONFIG} there{begins}")
    return settings


def status_of(work: Callable[[], int | None]) -> int:
    """Runs `work()` and returns an exit status.

    A `ClipbiasError`, a full or broken disk, and a lost process print one sentence, with status 1. After a notice to
    stop the status is 130 or 143. Any other exception is a defect and keeps its traceback.
    """
    try:
        return work() or 0
    except ClipbiasError as error:
        # A checkpoint that waits for a lost process fails, too, and would blame the disk.
        print(f"error: {hosts.PEER_ENDED if hosts.lost_peer(error) else error}", file=sys.stderr)
        return 1
    except OSError as error:  # the library's own reads and writes raise `ClipbiasError`; this is for other libraries'
        if error.errno not in (*BROKEN_DISK, *NOT_ALLOWED):
            raise
        where = f" {error.filename}" if error.filename else ""
        advice = "check its permissions" if error.errno in NOT_ALLOWED else "make room, or see to the disk"
        print(f"error: cannot use{printable(where)}: {reason(error)}; {advice}.", file=sys.stderr)
        return 1
    except hosts.Stopped as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from what is saved.", file=sys.stderr)
        return 130
    except Exception as error:
        if not hosts.lost_peer(error):
            raise
        print(f"error: {hosts.PEER_ENDED}", file=sys.stderr)
        return 1


def own_config(main: Callable[..., int | None]) -> ConfigDict:
    """Returns the configuration in `configs/` with the name of `main`'s binary."""
    return importlib.import_module(f"configs.{binary_of(main)}").get_config()


def tell(*lines: str) -> None:
    """Prints lines, without control characters that names in them may have."""
    for line in lines:
        print(printable(line), flush=True)  # at once, also into a pipe


class _AboveBars:
    """Stream for log records that breaks no progress bar."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return True  # otherwise absl would close it


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {printable(record.getMessage())}"


def quiet() -> None:
    """Prints log records of this package as sentences, and of others only errors; with --verbosity=1 all records."""
    here = (str(Path(__file__).parent), str(Path(hosts.__file__).parent))

    def shows(record: logging.LogRecord) -> bool:
        # Orbax logs exceptions with a traceback and then raises them; `checkpoints` makes a sentence of these.
        severe = record.levelno >= logging.ERROR and not record.exc_info
        is_ours = record.pathname.startswith(here) and record.name != "py.warnings"
        return severe or is_ours or get_verbosity() >= DEBUG

    use_absl_handler()  # before the command line is read: configuration files are programs, which may log, too
    get_absl_handler().addFilter(shows)
    get_absl_handler().setFormatter(_Sentence())
    get_absl_handler().python_handler.setStream(_AboveBars())
    logging.captureWarnings(True)
    as_record = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **source: Any) -> None:
        # Warnings of this package are sentences for the user; those of other libraries are lines of their source.
        if issubclass(category, ClipbiasWarning):
            tell(str(message))
        else:
            as_record(message, category, *place, **source)

    warnings.showwarning = show
    # Where a checkpoint's array cannot be written, the storage library ends its event loop, and then complains of the
    # other arrays, after our sentence.
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if str(lost.exc_value) == "Event loop is closed" else report(lost)


def start() -> None:
    """Joins a cluster if there is one, and keeps compiled programs in the user's cache folder."""
    from clipbias.training.device import keep_programs, prepare_cpu

    # Before threads start, and only if steps run on the CPU: beside an accelerator it is the decoding threads that
    # allocate, and glibc's own settings suit them better.
    if not any(Path(device).exists() for device in ACCELERATORS):
        prepare_cpu()
    hosts.start()
    if hosts.multi_process():
        # Where another process dies, JAX aborts this one with a message, which a dump of all threads would hide.
        faulthandler.disable()
    keep_programs()


def load_dataset(settings: "DatasetSettings", name: str) -> "Dataset":
    """Opens a dataset with the given settings; its source has defaults for the others."""
    from clipbias import data

    source = {"split": settings.split_source, "split_dir": settings.split_dir}
    options = {option: value for option, value in source.items() if value is not None}
    try:
        dataset = data.load(name, data_dir=settings.data_dir, template=settings.template, **options)
    except TypeError as error:  # an option that this source does not take
        if options and "unexpected keyword" in str(error):
            flags_given = ", ".join("--config.split_source" if x == "split" else f"--config.{x}" for x in options)
            raise ClipbiasError(f"the dataset {name!r} does not take {flags_given}; leave it out.") from error
        raise
    return dataclasses.replace(dataset, descriptions=load_descriptions(settings, name))


def load_descriptions(settings: "InputSettings", name: str) -> "Descriptions | None":
    """Reads descriptions by class name; `{dataset}` in their path stands for the dataset's name."""
    from clipbias.tuning import read_descriptions

    if settings.descriptions is None:
        return None
    return read_descriptions(settings.descriptions.replace("{dataset}", name.replace("/", "_")))
