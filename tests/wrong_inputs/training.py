"""Wrong tasks, datasets, devices, plans, settings and folders of a training."""

import dataclasses
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias import TunedModel
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.user_images import label_numbers
from clipbias.training import placement
from clipbias.training.ahead import open_topology
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.loop import train_job
from clipbias.training.memory import StepShape, plan_step
from clipbias.training.predictions import save_predictions
from clipbias.training.predictor import evaluate
from clipbias.training.progress import check_trackers
from clipbias.training.sweep import SweepAxes, make_specs, parse_part
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Recipe, Task
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.tuned import Tuned
from tests.training.conftest import COLOURS, colour_dataset, group, make_job, train_runs
from tests.training.test_placement import devices
from tests.wrong_inputs.place import Case, Place, case, pure, zeros

NAMES = tuple(COLOURS)
HELD = {"hold_out_shot": True}
DATA = colour_dataset()
RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)

meshed = case(lambda place, count, **more: placement.make_mesh(devices=devices(count, 4), **more))
fitted = case(lambda place, *args, method="bias", **more: clipbias.fit(place.clip, method, *args, **more))


@case
def planned(place: Place, method: str = "bias", **options: Any) -> None:
    task = Task(place.clip, method, ["a", "b"])
    plan_step(task, RECIPE, StepShape(8, 1, placement.single_device()), Compute(**options))


@case
def evaluated(place: Place, images: slice, **validation: Split) -> None:
    """Residuals that are no numbers."""
    task = place.task("taskres", NAMES)
    split = DATA.split("test")
    learnables = jax.tree.map(lambda leaf: leaf + np.nan, zeros(task))
    options = {"mesh": placement.single_device(), "eval_batch_size": 8, "on_image_error": "raise"}
    evaluate(Tuned(task, learnables), split.subset(np.arange(len(split))[images]), **options, **validation)


def of_different_sizes(place: Place) -> None:
    task, runs = group(place.clip, DATA, "bias", (1,))
    train_runs(task, [*runs, dataclasses.replace(runs[0], images=Images(DATA.split("val")))], RECIPE)


@case
def taught(place: Place, student: str, teacher: str = "bias", names: tuple[str, ...] = NAMES) -> None:
    tiny, runs = group(place.clip, DATA, student, (1,))
    train_job(dataclasses.replace(make_job(tiny, runs, RECIPE), teacher=place.tuned(teacher, names)))


def in_the_way(place: Place) -> None:
    (place.tmp_path / "predictions").write_text("")
    split = DATA.split("val")
    save_predictions(place.tmp_path, "test", place.tuned("taskres", NAMES), split, split.labels)


@case
def combined(place: Place, **axes: Any) -> None:
    """A sweep of a method that selects its α."""
    context = SweepContext(place.clip, {"colours": DATA}, Compute(), placement.single_device())
    make_specs(context, RECIPE, SweepAxes(methods=("gda",), datasets=("colours",), seeds=(1,), **axes))


@case
def workdir(place: Place, inside: str) -> None:
    (place.tmp_path / "file").write_text("")
    with open_workdir(place.tmp_path / inside, {}):
        pass


distilled = case(lambda place, *args, **more: clipbias.distil(place.tuned(), *args, progress=False, **more))
evaluating = case(lambda place, *args, **more: place.tuned().evaluate(*args, **more))
predicting = case(lambda place, *args, **more: place.tuned().predict(*args, **more))


def scored(place: Place) -> TunedModel:
    """A model with scores of twelve calibration images."""
    scores = Calibration.of(np.eye(2)[[0, 1] * 6], np.zeros(12, int), 1.0)
    return dataclasses.replace(place.tuned(), calibration=scores)


def too_large(place: Place) -> TunedModel:
    """A model whose numbers are finite, and what it computes is not."""
    tuned = place.tuned()
    return dataclasses.replace(tuned, learnables=jax.tree.map(lambda leaf: leaf + np.float32(1e38), tuned.learnables))


IMAGES, LABELS = np.zeros((18, 16, 16, 3), np.uint8), np.zeros(18, int)
CASES: list[Case] = [
    ("the learnables do not belong to BiasTuning", lambda place: TunedModel(place.task(), {})),
    pure("the task is 'bias'; give a clipbias.Task", TunedModel, "bias", {}),
    evaluating("colours has other classes than the model; take model.with_classes", DATA),
    pure("several classes are called 'cat'; give the numbers", label_numbers, ["dog", "cat"], ("cat", "dog", "cat")),
    fitted(
        "the split has the model's classes in another order",
        DATA.with_classes([2, 1, 0]).split("train"),
        class_names=DATA,
    ),
    predicting(r"image 0 has shape \[30, 40, 2\]", np.zeros((30, 40, 2), np.uint8)),
    evaluating("the split has other classes than the model", DATA.split("test")),
    predicting(r"the images have shape \[1, 8, 8, 3\]", np.zeros((1, 8, 8, 3), np.float32), normalised=True),
    predicting("numbers from 0 to 0.5, so they look like levels and not", np.linspace(0, 0.5, 480).reshape(8, 20, 3)),
    predicting("the images hold NaN", np.full((2, 16, 16, 3), np.nan, np.float32), normalised=True),
    ("the images are the folder .*; give its files", lambda place: place.tuned().predict(place.tmp_path)),
    ("the logits are not finite", lambda place: too_large(place).predict(IMAGES)),
    predicting("rejection is 'logit'; choose from max_logit, mcm, energy", IMAGES, rejection="logit"),
    ("takes 99 calibration images, and this model has 12", lambda place: scored(place).predict(IMAGES, coverage=0.99)),
    ("9 images cannot calibrate; give 10", lambda place: place.tuned().calibrate(IMAGES[:9], LABELS[:9])),
    pure("the model is None; give what clipbias.load returned, or a name", clipbias.fit, None, "bias", DATA),
    ("the first argument is a task; give the model", lambda place: clipbias.fit(place.task(), "bias", DATA)),
    ("is .* and no method; the order is the model, the", lambda place: clipbias.fit(place.clip, DATA, "bias")),
    fitted("colours has classes of its own", DATA, class_names=("cat", "dog")),
    fitted("neither images nor class names"),
    fitted("there are no labels; give images, and a label for each", [], []),
    fitted("no template and no texts of its classes; give class_names=dataset, the dataset of", DATA.split("train")),
    fitted("have labels of their own", DATA, LABELS),
    fitted("there is a single class, 'cat'; give images of two classes at least", IMAGES, ["cat"] * 18),
    fitted("recipe is 3; it must be of type .*Recipe", DATA, recipe=3),
    fitted("calibrate is 1; it must be True or False, or None", DATA, calibrate=1),
    *(
        fitted("validation is of type .*; give a split, or a pair of pictures and their labels", DATA, validation=wrong)
        for wrong in (DATA, (IMAGES,))
    ),
    *(
        taught(f"^'{name}' cannot learn from a teacher: it {why}", name)
        for name, why in {
            "linear_probe": "is made of features and labels of training images",
            "zero_shot": "has no trainable parameters",
            "tpt": "learns from each test image",
        }.items()
    ),
    taught("the teacher has 2 classes and the student 3, or in another order", "bias", names=("red", "green")),
    taught("'tpt' learns from crops of each test image, so it teaches without augmentation", "bias", teacher="tpt"),
    ("different numbers of steps", of_different_sizes),
    evaluated("not finite", slice(None)),
    evaluated("no image to evaluate on", slice(0)),
    distilled("the model names no dataset; give one, or pictures"),
    distilled("there are 4 unlabelled images; give at least 5", IMAGES[:4]),
    distilled("form is 'vectors'; choose", IMAGES, form="vectors"),
    combined("a single shot", shots=(1,), **HELD),
    combined("pseudo-labelled images have no label to select by", protocol="pseudo_labels", shots=(2,), **HELD),
    # Devices, and the plan of a step.
    evaluating("mesh is 3; give one of clipbias.training.make_mesh", IMAGES, LABELS, mesh=3),
    meshed("run=3 and data=5 cannot be made of 4 processes with 4 devices each", 4, run=3, data=5),
    planned("remat is 'all'; choose 'auto', 'products', 'half', 'tokens'", remat="all"),
    planned("class_chunks is 3; give 1 … 2", class_chunks=3),
    *(
        pure("topology is .*; give .* such as v5e:4x4, v5p:2x2x2, v6e:4x4, h100:1x1x8", open_topology, name)
        for name in ("v5e", "v5e:4x4x4", "a100:1x1x1", "")
    ),
    # Settings and folders.
    pure("trackers has 'wanbd'; choose from auto, tensorboard, wandb, trackio", check_trackers, ("wanbd",)),
    *(pure("such as 1/4", parse_part, part) for part in ("0/4", "5/4", "a/b")),
    (r"cannot write .*predictions/test\.npz: .*; choose another folder\.", in_the_way),
    *(
        workdir("cannot (write|open) .*; (choose another|check the path)", inside)
        for inside in ("file/x", "/proc/self/x", "a\0b", "x" * 300)
    ),
]
