"""Trains, explains and scores the benchmark's models.

    python -m tools.mechanisms train --workdir=workdir/mechanisms
    python -m tools.mechanisms score --workdir=workdir/mechanisms
    python -m tools.mechanisms draw workdir/mechanisms/answers.csv --to=docs/images/mechanisms.png

The first two continue where they stopped. `train --model=PATH` tunes another frozen model than the embedded one, in a
work folder of its own. `score` writes `answers.csv` into the work folder; `draw` takes several such files and writes
their rows beside the picture. `--families=bias,map_8 --limit=2 --steps=30` is for a try.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.explain.study import StudyOptions
from clipbias.report import style
from clipbias.report.pages import write_csv
from tools.mechanisms import picture, score
from tools.mechanisms.models import FAMILIES, STEPS, table
from tools.mechanisms.rules import FORMS
from tools.mechanisms.train import adapter_path, choose_model, train_model

REPLACEMENT_STEPS = 300  # of each form that is fitted to the predictions
_WORKDIR = flags.DEFINE_string("workdir", "workdir/mechanisms", "Where models, studies and scores are kept.")
_MODEL = flags.DEFINE_string("model", "demo", "What is tuned: a folder or a name, as `clipbias.load` takes it.")
_LIMIT = flags.DEFINE_integer("limit", None, "Trains at most so many models; None trains all.", lower_bound=1)
_FAMILIES = flags.DEFINE_list("families", list(FAMILIES), "Trains and scores these alone.")
_STEPS = flags.DEFINE_integer("steps", STEPS, "Steps of each training.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", None, "Test images of each study; None takes all.", lower_bound=1)
_TO = flags.DEFINE_string("to", "mechanisms.png", "The picture to write; its models go beside it as CSV.")


def train(workdir: Path) -> None:
    """Trains the models that have no file yet."""
    specs = table(_FAMILIES.value)[: _LIMIT.value]
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


def draw(files: Sequence[str], path: Path) -> None:
    """Draws the answers of these files, writes them beside the picture and prints the rates.

    Raises:
      ClipbiasError: a model is in two of the files, or they are of different labels and rules.
    """
    if not files:
        raise ClipbiasError("give the files answers.csv that `score` wrote.")
    answers = pd.concat([score.read_answers(Path(file)) for file in files], ignore_index=True)
    if answers.duplicated(["model", "layers"]).any() or answers["digest"].nunique() > 1:
        raise ClipbiasError(f"{', '.join(files)} have a model twice, or are of different labels and rules.")
    style.save_png(picture.draw(answers), path)
    write_csv(path.with_suffix(".csv"), answers)
    print(score.rates(answers).round(1).to_string(index=False))


def main(arguments: list[str]) -> None:
    workdir = Path(_WORKDIR.value)
    match arguments[1:]:
        case ["train"]:
            choose_model(workdir, _MODEL.value)
            train(workdir)
        case ["score"]:
            options = StudyOptions(
                image_limit=_IMAGES.value,
                replacement_forms=FORMS,
                replacement_steps=REPLACEMENT_STEPS,
            )
            answers = score.score(workdir, table(_FAMILIES.value), options)
            write_csv(workdir / "answers.csv", answers)
            print(score.rates(answers).round(1).to_string(index=False))
        case ["draw", *files]:
            draw(files, Path(_TO.value).with_suffix(".png"))
        case _:
            raise ClipbiasError(f"the command is {arguments[1:]}; give train, score or draw.")


if __name__ == "__main__":
    app.run(main)
