"""Trains, explains and scores the benchmark's models.

    python -m tools.mechanisms train --workdir=workdir/mechanisms
    python -m tools.mechanisms score --workdir=workdir/mechanisms

Both continue where they stopped. `train --model=PATH` tunes another frozen model than the embedded one, in a work
folder of its own. `score` writes `answers.csv` into the work folder. `--families=bias --steps=30` is for a try.
"""

import time
from pathlib import Path

from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.report.pages import write_csv
from tools.mechanisms import score
from tools.mechanisms.labels import FAMILIES, STEPS, table
from tools.mechanisms.train import adapter_path, choose_model, train_model

_WORKDIR = flags.DEFINE_string("workdir", "workdir/mechanisms", "Folder of models, studies and scores.")
_MODEL = flags.DEFINE_string("model", "demo", "Frozen model: a folder or a name, as `clipbias.load` takes it.")
_FAMILIES = flags.DEFINE_list("families", list(FAMILIES), "Trains and scores these alone.")
_STEPS = flags.DEFINE_integer("steps", STEPS, "Steps of each training.", lower_bound=1)


def train(workdir: Path) -> None:
    """Trains the models that have no file yet."""
    specs = table(_FAMILIES.value)
    for number, spec in enumerate(specs, start=1):
        if (path := adapter_path(workdir, spec)).exists():
            if score.notes_of(path)["steps"] != _STEPS.value:
                raise ClipbiasError(f"{path} was trained with other --steps; remove it, or give another --workdir.")
            continue
        began = time.process_time()
        train_model(workdir, spec, steps=_STEPS.value)
        validation = score.notes_of(path)["validation"]
        print(
            f"{number}/{len(specs)} {spec.key}: {time.process_time() - began:.0f} CPU seconds; {validation}", flush=True
        )


def main(arguments: list[str]) -> None:
    workdir = Path(_WORKDIR.value)
    match arguments[1:]:
        case ["train"]:
            choose_model(workdir, _MODEL.value)
            train(workdir)
        case ["score"]:
            answers = score.score(workdir, table(_FAMILIES.value))
            write_csv(workdir / "answers.csv", answers)
            print(score.origin(answers))
            print(score.rates(answers).round(1).to_string(index=False))
        case _:
            raise ClipbiasError(f"the command is {arguments[1:]}; give train or score.")


if __name__ == "__main__":
    app.run(main)
