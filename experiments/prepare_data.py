"""Checks datasets on disk, builds array_record shards of them, and draws a contact sheet.

    python -m experiments.prepare_data --config.data_dir=/data
    python -m experiments.prepare_data --config.action=build --config.datasets=eurosat,ucf101 --config.data_dir=/data \\
        --config.output=/shards
    python -m experiments.prepare_data --config.action=draw --config.datasets=eurosat --config.data_dir=/data \\
        --config.output=eurosat.png

The status of `check` is 0 if nothing that was found is broken or differs from the catalogue. All actions take every
name that `clipbias.data.load` takes; `folder` and `csv` too.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from clipbias import data
from clipbias.checks import check_int
from clipbias.data import benchmark_check, catalog, shards
from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, is_remote
from clipbias.report.contact_sheet import contact_sheet
from experiments import common

_CONFIG = "configs/prepare_data.py"


def run_check(config: ConfigDict) -> int:
    """Prints the table; returns the exit status."""
    if not config.data_dir:
        raise ClipbiasError("check needs --config.data_dir, the root of the datasets.")
    findings = []
    for name in config.datasets or catalog.ENTRIES:
        if name in catalog.ENTRIES:
            if is_remote(config.data_dir):
                raise ClipbiasError(f"check looks at files, and {config.data_dir} is in a bucket; mount it.")
            findings.append(benchmark_check.check(catalog.ENTRIES[name], config.data_dir, decode=config.decode))
        else:
            dataset = data.load(name, data_dir=config.data_dir)
            findings.append(benchmark_check.check_images(dataset, decode=config.decode))
    print(benchmark_check.table(findings))
    return int(any(finding.problems and (finding.counts or finding.state != "missing") for finding in findings))


def run_build(config: ConfigDict) -> int:
    """Builds shards of each dataset; returns the exit status."""
    if not config.output or not config.datasets:
        raise ClipbiasError("build needs --config.datasets, and --config.output, the folder for the shards.")
    for name in config.datasets:
        folder = shards.build(data.load(name, data_dir=config.data_dir or None), config.output)
        common.tell(f"{name}: {folder}")
    return 0


def run_draw(config: ConfigDict) -> int:
    """Draws a contact sheet; returns the exit status."""
    if len(config.datasets) != 1 or not config.output:
        raise ClipbiasError("draw needs --config.datasets with one name, and --config.output, the PNG file.")
    dataset = data.load(config.datasets[0], data_dir=config.data_dir or None)
    check_int("shots", config.shots, lowest=1)
    sheet = contact_sheet(dataset, shots=config.shots, seed=config.seed, max_classes=config.most_classes)
    with atomic_path(config.output) as temporary:
        sheet.save(temporary, format="PNG")
    common.tell(config.output)
    return 0


ACTIONS: dict[str, Callable[[ConfigDict], int]] = {"check": run_check, "build": run_build, "draw": run_draw}


def main(config: ConfigDict) -> int:
    """Runs one action; returns the exit status."""
    return ACTIONS[config.action](config)


if __name__ == "__main__":
    common.run(main, _CONFIG)
