"""Makes the page of all bundles in a folder, after checking each.

python -m tools.results_page results --to=results.html
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from clipbias.bundles.page import read_submissions, write_page
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from experiments import common

_TO = flags.DEFINE_string("to", "results.html", "The page to write.")


def main(folders: Sequence[str]) -> int:
    """Writes the page; returns the exit status."""
    if len(folders) != 1:
        raise ClipbiasError("give the folder that holds the bundles: python -m tools.results_page results.")
    submissions, failures = read_submissions(Path(folders[0]))
    print(f"{printable(write_page(submissions, Path(_TO.value), failures))}: {len(submissions)} bundles")
    for failure in failures:
        print(printable(failure))
    return int(bool(failures))


if __name__ == "__main__":
    common.quiet()
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
