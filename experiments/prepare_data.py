"""Checks datasets on disk, builds array_record shards of them, and draws a contact sheet.

    python -m experiments.prepare_data check --data_dir=/data [--decode]
    python -m experiments.prepare_data build eurosat ucf101 --data_dir=/data --out_dir=/shards
    python -m experiments.prepare_data show eurosat --data_dir=/data --shots=16 --draw_seed=1 --picture=eurosat.png

`check` takes the names of datasets or none for all fifteen of the catalogue; its status is 0 if nothing that was found
is broken or differs from the catalogue. All take every name that `clipbias.data.load` takes; `folder` and `csv` too.
"""

from collections.abc import Callable, Sequence

from absl import flags

from clipbias import data
from clipbias.data import benchmark_check, catalog, shards
from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, is_remote
from clipbias.report.contact_sheet import contact_sheet
from experiments import common

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the datasets are; see clipbias.data.load.")
_OUT_DIR = flags.DEFINE_string("out_dir", None, "build: the folder for the shards; made if needed.")
_DECODE = flags.DEFINE_bool("decode", False, "check: decode every image, not only look for the files.")
_SHOTS = flags.DEFINE_integer("shots", 16, "show: images per class.", lower_bound=1)
_SEED = flags.DEFINE_integer("draw_seed", 1, "show: the draw's seed.")
_MAX_CLASSES = flags.DEFINE_integer("max_classes", 12, "show: rows at most.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("picture", "contact_sheet.png", "show: the picture to write.")


def run_check(names: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    if _DATA_DIR.value is None:
        raise ClipbiasError("check needs --data_dir, the root of the datasets.")
    findings = []
    for name in names or catalog.ENTRIES:
        if name in catalog.ENTRIES:
            if is_remote(_DATA_DIR.value):
                raise ClipbiasError(f"check looks at files, and {_DATA_DIR.value} is in a bucket; mount it.")
            findings.append(benchmark_check.check(catalog.ENTRIES[name], _DATA_DIR.value, decode=_DECODE.value))
        else:
            dataset = data.load(name, data_dir=_DATA_DIR.value)
            findings.append(benchmark_check.check_images(dataset, decode=_DECODE.value))
    print(benchmark_check.table(findings))
    return int(any(finding.problems and (finding.counts or finding.state != "missing") for finding in findings))


def run_build(names: Sequence[str]) -> int:
    """Builds shards of each dataset; returns the exit status."""
    if _OUT_DIR.value is None or not names:
        raise ClipbiasError("build needs the name of a dataset and --out_dir, the folder for the shards.")
    for name in names:
        folder = shards.build(data.load(name, data_dir=_DATA_DIR.value), _OUT_DIR.value)
        print(f"{name}: {folder}")
    return 0


def run_show(names: Sequence[str]) -> int:
    """Draws a contact sheet; returns the exit status."""
    if len(names) != 1:
        raise ClipbiasError(f"show needs the name of one dataset, got {len(names)}.")
    dataset = data.load(names[0], data_dir=_DATA_DIR.value)
    sheet = contact_sheet(dataset, shots=_SHOTS.value, seed=_SEED.value, max_classes=_MAX_CLASSES.value)
    with atomic_path(_OUTPUT.value) as temporary:
        sheet.save(temporary, format="PNG")
    print(_OUTPUT.value)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"check": run_check, "build": run_build, "show": run_show}


def main(names: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    if not names or names[0] not in COMMANDS:
        raise ClipbiasError(f"the first argument must be one of {', '.join(COMMANDS)}; see --help.")
    return COMMANDS[names[0]](names[1:])


if __name__ == "__main__":
    common.run_arguments(main, "check|build|show [DATASET …]")
