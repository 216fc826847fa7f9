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

from clipbias import data
from clipbias.data import benchmark_check, catalog, tfds
from clipbias.errors import ClipbiasError
from clipbias.io import is_remote
from clipbias.report import style
from clipbias.report.contact_sheet import contact_sheet
from configs.prepare_data import PrepareDataSettings
from experiments import common


def run_check(settings: PrepareDataSettings) -> int:
    if settings.data_dir is None:
        raise ClipbiasError("check needs --config.data_dir, the root of the datasets.")
    findings = []
    for name in settings.datasets or catalog.ENTRIES:
        if name in catalog.ENTRIES:
            if is_remote(settings.data_dir):
                raise ClipbiasError(f"check looks at files, and {settings.data_dir} is in a bucket; mount it.")
            findings.append(benchmark_check.check(catalog.ENTRIES[name], settings.data_dir, decode=settings.decode))
        else:
            dataset = data.load(name, data_dir=settings.data_dir)
            findings.append(benchmark_check.check_images(dataset, decode=settings.decode))
    print(benchmark_check.table(findings))
    return int(any(finding.problems and (finding.counts or finding.state != "missing") for finding in findings))


def run_build(settings: PrepareDataSettings) -> int:
    if settings.output is None or settings.datasets is None:
        raise ClipbiasError("build needs --config.datasets, and --config.output, the folder for the shards.")
    for name in settings.datasets:
        folder = tfds.build_shards(data.load(name, data_dir=settings.data_dir), settings.output)
        common.tell(f"{name}: {folder}")
    return 0


def run_draw(settings: PrepareDataSettings) -> int:
    if settings.datasets is None or len(settings.datasets) != 1 or settings.output is None:
        raise ClipbiasError("draw needs --config.datasets with one name, and --config.output, the PNG file.")
    dataset = data.load(settings.datasets[0], data_dir=settings.data_dir)
    style.save_png(contact_sheet(dataset, shots=settings.shots, seed=settings.seed), settings.output, dpi=100)
    common.tell(settings.output)
    return 0


ACTIONS: dict[str, Callable[[PrepareDataSettings], int]] = {"check": run_check, "build": run_build, "draw": run_draw}


def main(settings: PrepareDataSettings) -> int:
    return ACTIONS[settings.action](settings)


if __name__ == "__main__":
    common.run(main)
