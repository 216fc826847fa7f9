"""Packs the predictions of finished sweeps into a bundle: a folder that others can check without images or weights.

    python -m experiments.bundle --config.runs=workdir/demo --config.output=results/demo
    python -m experiments.bundle --config.runs=/results/lab --config.output=results/my_lab

One file for each dataset has a line per run, the predicted class of every test image and, at 16 shots, its largest
log-probabilities. `python -m tools.check_bundle` recomputes all numbers from it. No pictures are packed, but the names
of test images are.
"""

from ml_collections import ConfigDict

from clipbias.bundles.write import write_bundle
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from experiments import common
from experiments.command_line import matching, split

_CONFIG = "configs/bundle.py"


def main(config: ConfigDict) -> None:
    folders = [user_path(folder) for part in split(config.runs) for folder in matching(part)]
    if not folders or not config.output:
        raise ClipbiasError("give --config.runs=FOLDERS, separated by commas, and --config.output=FOLDER.")
    written = write_bundle(folders, user_path(config.output))
    for path in sorted(written.iterdir()):
        common.tell(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    common.run(main, _CONFIG)
