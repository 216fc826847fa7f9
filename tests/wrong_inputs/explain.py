"""Wrong targets and studies, adapters without an equivalent bias, and damaged results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import clipbias
from clipbias.data import Split
from clipbias.explain.model import Model
from clipbias.explain.relevancy import relevancy
from clipbias.explain.results_file import ARRAYS, SCALARS, load_results, save_arrays, save_results
from clipbias.explain.run import run_study
from clipbias.explain.study import Study, StudyOptions
from tests.bad_files import NO_OBJECT
from tests.report.synthetic import only_sections, synthetic_results
from tests.wrong_inputs.place import Case, Place, case

IMAGES = np.zeros((4, 16, 16, 3), np.float32)
LEVELS = IMAGES.astype(np.uint8)


maps = case(lambda place, *args, **more: relevancy(*place.learned("zero_shot", ("cat",)), IMAGES, *args, **more))


@case
def equivalent_bias(place: Place, method: str, images: Any, /, *kind: str, **options: Any) -> None:
    clipbias.equivalent_bias(place.tuned(method, **options), images, *kind)


@case
def study(place: Place, *methods: str, images: int = 1) -> None:
    models = [Model(name, name, name, place.task(name), {}) for name in methods]
    study = Study(models, Split(("a",) * images, (0,) * images, lambda _: b""), StudyOptions(), place.tmp_path)
    run_study(study, place.tmp_path, dataset="noise", sections=("fig9",))


@case
def results(place: Place, file: str, damage: Callable[[Path], Any]) -> None:
    """A study's results of which a file is damaged."""
    save_results(place.tmp_path, only_sections(synthetic_results()))
    damage(place.tmp_path / file)
    load_results(place.tmp_path)


CASES: list[Case] = [
    maps(r"targets have shape \(3,\) for 4 images", np.zeros(3, int)),
    maps("targets are float32; give class numbers", np.zeros(4, np.float32)),
    maps("targets go from 0 to 1; the task has classes 0 … 0", np.array([0, 0, 1, 0])),
    maps("start_layer 3 is outside the vision tower's 3 layers", np.zeros(4, int), start_layer=3),
    # Adapters.
    equivalent_bias("TaskRes has no equivalent bias. Neither tokens nor weights inside the towers", "taskres", LEVELS),
    equivalent_bias("TPT learns of crops of each image, which are not made here", "tpt", LEVELS),
    equivalent_bias("'coop' starts from texts such as 'an image of a cat.'", "coop", LEVELS, words="an image of a"),
    equivalent_bias("the images are numbers from 0 to 0, so they look like levels", "vpt", IMAGES),
    equivalent_bias("there is no image to measure on", "vpt", None),
    # Studies and their results.
    study("unknown section 'fig9'", "zero_shot", "vpt"),
    study("give 'zero_shot' first", "vpt"),
    study("no image to explain", "zero_shot", "vpt", images=0),
    results("holds no results.json", SCALARS, Path.unlink),
    *(
        results("results.json is not a study's results", SCALARS, lambda path, text=text: path.write_text(text))
        for text in NO_OBJECT
    ),
    results("results.npz is damaged", ARRAYS, lambda path: path.write_bytes(b"PK")),
    # As a process leaves it that was killed before it wrote the other file.
    results("or of another study than results.json", ARRAYS, lambda path: save_arrays(path, {"x": np.ones(2)})),
]
