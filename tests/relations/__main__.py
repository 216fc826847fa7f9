"""Prints the table of relations as Markdown: `python -m tests.relations [quick | ci | all] [method …]`."""

import logging
import sys

import tests.conftest  # before JAX reads its environment
import tests.fixtures  # noqa: F401 (eight devices)
from clipbias.training.device import drop_many_programs
from tests.relations.every_row import ROWS, cases, markdown, names, try_row


def main(level: str = "quick", *methods: str) -> None:
    logging.disable(logging.WARNING)
    trials = []
    for method in methods or names(level):
        for row in ROWS:
            trials += try_row(row, cases(row, method, level))
        drop_many_programs()
    print("\n".join(markdown(trials)))


if __name__ == "__main__":
    main(*sys.argv[1:])
