"""Wrong tasks, datasets, devices, plans, settings and folders of a training."""

import dataclasses
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias.data import Dataset, Split
from clipbias.training import mesh as meshes
from clipbias.training.ahead import open_topology
from clipbias.training.evaluate import evaluate
from clipbias.training.memory import plan_step
from clipbias.training.predictions import save_predictions
from clipbias.training.sweep import parse_part
from clipbias.training.trackers import check_trackers
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Recipe, Task
from clipbias.tuning.transfer import transfer
from tests.training.conftest import COLOURS, colour_split, group, train_runs
from tests.training.test_mesh import devices
from tests.wrong_inputs.place import Case, Place, case, pure, zeros

NAMES = tuple(COLOURS)
SPLITS = {"train": colour_split(6, 0), "val": colour_split(2, 1), "test": colour_split(5, 2)}
DATA = Dataset("colours", NAMES, "a photo of a {}.", SPLITS)
OTHERS = "makes of an image depends on the other images of its batch"
DROPS = "drops inputs of the vision tower by one draw for all images of a batch"
END = r"; leave it at None or lower batch_size\.$"
RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)

meshed = case(lambda place, count, **more: meshes.make_mesh(devices=devices(count, 4), **more))
fitted = case(lambda place, call, *given, names=NAMES, **more: call(place.task(names=names), *given, **more))


@case
def planned(place: Place, method: str = "bias", **options: Any) -> None:
    task = Task(place.clip, method, ["a", "b"])
    plan_step(task, RECIPE, rows=8, runs=1, mesh=meshes.single_device(), **options)


@case
def evaluated(place: Place, images: slice, **validation: Split) -> None:
    """Residuals that are no numbers."""
    task, split = place.task("taskres", NAMES), DATA.split("test")
    learnables = jax.tree.map(lambda leaf: leaf + np.nan, zeros(task))
    options = {"mesh": meshes.single_device(), "eval_batch_size": 8, "on_image_error": "raise"}
    evaluate(task, learnables, split.subset(np.arange(len(split))[images]), **options, **validation)


def of_different_sizes(place: Place) -> None:
    task, runs = group(place.clip, DATA, "bias", (1,))
    train_runs(task, [*runs, dataclasses.replace(runs[0], train=DATA.split("val"))], RECIPE)


def of_other_classes(place: Place) -> None:
    source, target = place.task("taskres", ("a", "b", "c")), place.task("taskres", ("c", "a"))
    transfer(source, target, zeros(source))


def in_the_way(place: Place) -> None:
    (place.tmp_path / "predictions").write_text("")
    task, split = place.task("taskres", NAMES), DATA.split("val")
    save_predictions(place.tmp_path, "test", task, zeros(task), "taskres", split, split.labels)


@case
def workdir(place: Place, inside: str) -> None:
    (place.tmp_path / "file").write_text("")
    with open_workdir(place.tmp_path / inside, {}):
        pass


IMAGES, LABELS = np.zeros((18, 16, 16, 3), np.uint8), np.zeros(18, int)
CASES: list[Case] = [
    fitted(r"second argument is not what BiasTuning learns \(text_bias, vision_bias\)", clipbias.predict, IMAGES, {}),
    (
        "the second argument is not what BiasTuning",
        lambda place: clipbias.evaluate(place.task(names=NAMES), place.clip.params, DATA),
    ),
    fitted("colours has 3 classes, not the task's 2", clipbias.fit, DATA, names=("cat", "dog")),
    ("classes, not the task's", lambda place: clipbias.evaluate(place.task(), zeros(place.task()), DATA)),
    fitted("images without labels", clipbias.fit, IMAGES),
    fitted("18 images and 2 labels", clipbias.fit, IMAGES, LABELS[:2]),
    fitted("has labels of its own", clipbias.fit, DATA, LABELS),
    fitted("there is no dataset 'nothing'", clipbias.fit, "nothing"),
    fitted("learning_rate is -1", clipbias.fit, DATA, learning_rate=-1),
    fitted("seed is -1", clipbias.fit, DATA, seed=-1),
    ("different numbers of steps", of_different_sizes),
    evaluated("is not finite", slice(None)),
    evaluated("is not finite", slice(None), validation=SPLITS["train"]),
    evaluated("no image to evaluate on", slice(0)),
    ("learned something for each class", of_other_classes),
    # Devices, and the plan of a step.
    pure("run=0 and data=8 has no devices; give at least 1 each", meshes.make_mesh, run=0),
    pure("needs 64 devices; there are 8", meshes.make_mesh, run=8, data=8),
    meshed("run=3 and data=5 cannot be divided among 4 processes of 4 devices", 4, run=3, data=5),
    meshed("run=1 and data=1 cannot be divided among 2", 2, run=1, data=1),
    planned("remat is 'all'; choose 'auto', 'products', 'half', 'tokens'", remat="all"),
    planned(f"^micro_batch is 2, but what PLOT {OTHERS}{END}", "plot", micro_batch=2),
    planned(f"^micro_batch is 2, but what PLOTPlusPlus {OTHERS}{END}", "plot_plus_plus", micro_batch=2),
    planned(f"^micro_batch is 2, but ClipLora {DROPS}{END}", "clip_lora", micro_batch=2),
    planned("class_chunks is 3; give 1 … 2", chunks=3),
    *(
        pure("topology is .*; give .* such as v5e:4x4, v5p:2x2x2, v6e:4x4, h100:1x1x8", open_topology, name)
        for name in ("v5e", "v5e:4", "v5e:4x4x4", "h100:8", "a100:1x1x1", "", "v5p:2x2", ":")
    ),
    # Settings and folders.
    pure("trackers has 'wanbd'; choose from auto, tensorboard, wandb, trackio", check_trackers, ("wanbd",)),
    *(pure("such as 1/4", parse_part, part) for part in ("0/4", "5/4", "1", "a/b")),
    (r"cannot write .*predictions/test\.npz: .*; choose another folder\.", in_the_way),
    *(
        workdir("cannot (write|open) .*; (choose another|check the path)", inside)
        for inside in ("file/x", "/dev/null/x", "/proc/self/x", "/sys/x", "a\0b", "x" * 300)
    ),
]
