"""What every binary does around its own work: flags, start-up, and one sentence for a user's mistake."""

import dataclasses
import importlib
import inspect
import json
import logging as python_logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.io import BROKEN_DISK, NOT_ALLOWED, data_path, reason
from clipbias.terminal import printable
from experiments import help_page, settings
from experiments.command_line import read_config

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that is written.")

# Device files of NVIDIA GPUs, AMD GPUs and TPUs.
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def run(main: Callable[[ConfigDict, Path], Any], default: str) -> None:
    """Runs a binary: `main(config, workdir)`, see `answer`.

    `--config` names a file of `configs/`, `default` without it, whose values `--config.name=value` changes. The flag is
    defined here, not at import: several binaries can be imported into one process.
    """
    given, arguments, config = _or_one_sentence(lambda: read_config(sys.argv, default))
    if help_page.is_asked(arguments):
        _show_help(main, config, given)
        return
    holder = _or_one_sentence(
        lambda: config_flags.DEFINE_config_dict("config", config, "Configuration.", sys_argv=arguments)
    )

    def guarded(arguments: list[str]) -> int:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected argument {arguments[1]!r}; settings are given as --config.name=value.")
        try:
            start()
        except ClipbiasError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return answer(main, holder.value, WORKDIR.value)

    app.run(guarded, argv=arguments, flags_parser=lambda arguments: _parse(arguments, config))


def run_arguments(main: Callable[[Sequence[str]], int], names: str) -> None:
    """Runs a binary that takes names instead of a configuration: `main(names)`, see `answer_names`.

    A folder given with --workdir counts as a name. No device is started.

    Args:
      main: of the binary.
      names: what its help says of them, such as "FOLDER …".
    """
    if help_page.is_asked(sys.argv):
        _show_help(main, None, names=names)
        return

    def guarded(arguments: list[str]) -> int:
        return answer_names(main, [*arguments[1:], *([WORKDIR.value] if WORKDIR.value else [])])

    app.run(guarded, flags_parser=_parse)


def answer(main: Callable[[ConfigDict, Path], Any], config: ConfigDict, workdir: str | None = None) -> int:
    """Runs `main(config, workdir)` and turns how it ends into an exit status.

    A `ClipbiasError` ends it with its message alone and status 1, and so does a disk that is full or broken; a notice
    to stop with status 130 or 143, after saving. Any other exception is a defect and keeps its traceback.

    Args:
      main: of a binary.
      config: its configuration, which is told the folder, too.
      workdir: takes precedence over the configuration's own.
    """

    def work() -> int:
        # They import JAX, which showing runs does without.
        from clipbias.clip import precision
        from clipbias.training.progress import say
        from clipbias.training.workdir import CONFIG
        from experiments import configuration

        configuration.check(config, own_config(main))
        folder = workdir or config.workdir
        if not folder and not config.get("dry_run"):
            raise ClipbiasError("no folder to write to; give --workdir=FOLDER.")
        config.workdir = folder
        with hosts.stoppable():
            if "dtype" in config and not config.get("topology"):  # what is written says what the device took
                config.dtype = precision.resolve(config.dtype)
            # Each host may have a path of its own to the folder; that it is the same one is found where it is opened.
            hosts.assert_same("the configuration", {**plain(config), "workdir": ""})
            if not config.get("dry_run"):
                say(f"{binary_of(main)}: everything is written to {folder}, the settings to {CONFIG} there")
            main(config, data_path(folder or "."))
        return 0

    return _status(work, told=str)


def answer_names(main: Callable[[Sequence[str]], int], names: Sequence[str]) -> int:
    """The exit status of `main(names)`; 143 after SIGTERM and 130 after Ctrl-C.

    A `ClipbiasError` ends it with its message alone and status 1, and so does a disk that is full or broken.
    """

    def work() -> int:
        with hosts.stoppable():
            return main(names)

    return _status(work, told=printable)


def _status(work: Callable[[], int], *, told: Callable[[ClipbiasError], str]) -> int:
    """The exit status of `work`, or of what ends it."""
    try:
        return work()
    except ClipbiasError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return broken_disk(error)
    except hosts.Stopped as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from what is saved.", file=sys.stderr)
        return 130


def broken_disk(error: OSError) -> int:
    """Tells of a disk that is full or broken, or of what may not be used, wherever it is noticed; the exit status.

    What this library writes and reads it tells of itself; this is for what others do. Any other error is raised again.
    """
    if error.errno not in (*BROKEN_DISK, *NOT_ALLOWED):
        raise error
    where = f" {error.filename}" if error.filename else ""
    advice = "check its permissions" if error.errno in NOT_ALLOWED else "make room, or see to the disk"
    print(f"error: cannot use{printable(where)}: {reason(error)}; {advice}.", file=sys.stderr)
    return 1


def own_config(main: Callable[[ConfigDict, Path], Any]) -> ConfigDict:
    """The configuration of `configs/` that is named as the binary of `main` is: what it reads is in there."""
    return importlib.import_module(f"configs.{binary_of(main)}").get_config()


def binary_of(main: Callable) -> str:
    """The name of the binary that a `main` belongs to, such as "train"."""
    return Path(inspect.getfile(main)).stem


def tell(*lines: str) -> None:
    """Prints lines to a terminal, which names in them cannot steer."""
    for line in lines:
        print(printable(line), flush=True)  # known now, also where the output is piped


def _show_help(main: Callable, config: ConfigDict | None, given: str = "", *, names: str = "") -> None:
    text = help_page.render(binary_of(main), main.__globals__["__doc__"], sys.argv[0], config, given, names=names)
    tell(*text.removesuffix("\n").split("\n"))


def _parse(arguments: list[str], config: ConfigDict | None = None) -> list[str]:
    try:
        return _or_one_sentence(lambda: flags.FLAGS(arguments))
    except flags.UnrecognizedFlagError as error:
        known = [name for name in flags.FLAGS if not name.startswith("config.")]
        print(f"error: {printable(settings.unknown_flag(error.flagname, config, known))}", file=sys.stderr)
        sys.exit(1)


def _or_one_sentence(read: Callable[[], Any]) -> Any:
    """What reading a command line gives."""
    try:
        return read()
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except flags.UnrecognizedFlagError:
        raise
    except Exception as error:  # parsers of values raise what they like
        told: Any = error
        while isinstance(told, BaseException) and told.args:
            told = told.args[0]
        lines = [line.strip() for line in str(told).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(dict.fromkeys((lines[0], lines[-1])))  # what is wrong, and the reason or a suggestion
        print(f"error: {printable(said)}", file=sys.stderr)
        sys.exit(1)


def quiet() -> None:
    """Silences what libraries note of their own workings, which would bury the progress; their errors stay."""
    for library in ("jax", "fontTools", "httpx", "httpx2", "matplotlib"):
        python_logging.getLogger(library).setLevel(python_logging.ERROR)
    # What orbax tells with a traceback it also raises, and then it is told in a sentence.
    logging.get_absl_handler().addFilter(
        lambda record: (
            "/orbax/" not in record.pathname or (record.levelno >= python_logging.WARNING and not record.exc_info)
        )
    )
    # And where one array of a checkpoint could not be written, its storage library tells of the others too late.
    told = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if str(lost.exc_value) == "Event loop is closed" else told(lost)


def start() -> None:
    """Joins a cluster if there is one, and keeps compiled programs in the user's cache folder."""
    from clipbias.training import cpu, kept_programs

    quiet()
    # Before threads start, and only where steps run on the CPU: with an accelerator it is the decoding threads that
    # allocate, and they are better off with glibc's own settings.
    if not any(Path(device).exists() for device in ACCELERATORS):
        cpu.prepare()
    hosts.start()
    kept_programs.keep()


def load_dataset(config: ConfigDict, name: str) -> Any:
    """Opens a dataset with the configuration's options; empty ones are left to the source."""
    from clipbias import data

    options = {key: config[key] for key in ("split", "split_dir", "index_file") if config[key]}
    try:
        dataset = data.load(name, data_dir=config.data_dir or None, template=config.template or None, **options)
    except TypeError as error:  # an option that this source does not take
        if options and "unexpected keyword" in str(error):
            given = ", ".join(f"--config.{key}" for key in options)
            raise ClipbiasError(f"the dataset {name!r} does not take {given}; leave it out.") from error
        raise
    return dataclasses.replace(dataset, descriptions=load_descriptions(config, name))


def load_descriptions(config: ConfigDict, name: str) -> Any:
    """The configuration's texts by class name for a dataset, whose name may be part of their path, or `None`."""
    from clipbias.tuning import read_descriptions

    path = config.descriptions
    return read_descriptions(path.replace("{dataset}", name.replace("/", "_"))) if path else None


def plain(config: ConfigDict) -> dict[str, Any]:
    """A configuration as JSON values, to be stored beside its results."""
    return json.loads(config.to_json_best_effort())
