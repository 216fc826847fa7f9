"""Recomputes the numbers of bundles from their predictions, and compares their facts with what is published.

    python -m tools.check_bundle results/demo results/another
    python -m tools.check_bundle results/mine --data_dir=/data

For each bundle it prints what differs, what agrees and what cannot be checked. The exit status is 1 where anything
differs. With `--data_dir` lists of images are compared with the datasets' own; no image is read. `--hub=False` asks no
network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.bundles.check import check_bundle, hub_hashes, report
from clipbias.bundles.files import read_bundle
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from experiments import common

_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Root folder of the datasets; empty compares with published facts alone."
)
_HUB = flags.DEFINE_bool("hub", True, "Whether the hub is asked for the hashes of weights.")


def main(folders: Sequence[str]) -> int:
    """Checks; returns the exit status."""
    if not folders:
        raise ClipbiasError("give bundles: python -m tools.check_bundle results/NAME ....")
    status = 0
    for folder in map(Path, folders):
        try:
            hub = hub_hashes if _HUB.value else lambda name, revision: None
            found = check_bundle(read_bundle(folder), folder, data_dir=_DATA_DIR.value, hub=hub)
        except ClipbiasError as error:
            print(f"{printable(folder)}: {printable(error)}", file=sys.stderr)
            status = 1
            continue
        print(*(f"{printable(folder)}: {printable(line)}" for line in report(found)), sep="\n")
        status = status or int(bool(found.differs))
    return status


if __name__ == "__main__":
    common.quiet()
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
