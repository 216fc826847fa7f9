"""A plan from data sheets: steps on more devices than there are here, and the paper's whole Table 1.

Arithmetic only: nothing here is measured.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from clipbias.clip import Clip
from clipbias.clip.params import empty_params
from clipbias.clip.preprocess import Preprocessing
from clipbias.data.catalog import ENTRIES
from clipbias.data.pipeline import steps_per_epoch
from clipbias.training import flops
from clipbias.tuning import Task
from configs import table1
from tools.benchmarks import model
from tools.benchmarks.cost_model import (
    StepTime,
    Work,
    adaptation_of,
    all_reduce_seconds,
    groups_of,
    prompt_count,
    training_step,
)
from tools.benchmarks.hardware import Hardware

THREADS = 16  # the most that one process decodes with (`clipbias.data.pipeline.default_workers`)
KEPT_BYTES = 1 << 30  # resized test images up to this size are kept by an `Evaluator`


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan rests on besides data sheets.

    Attributes:
      share: of the peak that arithmetic reaches.
      hop_seconds: of one message to a neighbour.
      dispatch_seconds: of the host that starts a step.
      cached, decoded: images per second of one decoding thread, from kept pixels (training) and from JPEG (evaluation).
    """

    share: float
    hop_seconds: float
    dispatch_seconds: float
    cached: float
    decoded: float


def bare_clip(name: str) -> Clip:
    """A geometry whose weights are never touched."""
    config = model.geometry(name)
    tokenizer = model.WordTokenizer(config.text.vocabulary_size)
    return Clip(empty_params(config), config, tokenizer, Preprocessing(config.vision.image_size), name, name)


def step_time(work: Work, hardware: Hardware, devices: int, runs: int, given: Assumptions) -> StepTime:
    """Of `runs` independent runs, or of one that all devices share."""
    split = devices if runs == 1 else 1
    hosts = -(-devices // hardware.per_host)
    return StepTime(
        compute=work.flop / (hardware.peak * given.share),
        collectives=all_reduce_seconds(
            work.exchanges, work.exchanged_bytes, split, link=hardware.link, hop_seconds=given.hop_seconds
        ),
        dispatch=given.dispatch_seconds,
        input=runs * work.images / (hosts * THREADS * given.cached),
    )


def steps(
    clip: Clip, hardware: Hardware, method: str, classes: int, batch: int, given: Assumptions, **options: Any
) -> Iterable[dict[str, Any]]:
    """A line for every power of two of devices: one run on all of them, and one run on each."""
    names = model.class_names(classes)
    for devices in (2**n for n in range(hardware.devices.bit_length())):
        whole = training_step(Task(clip, method, names, groups=devices, **options), batch, devices)
        alone = training_step(Task(clip, method, names, **options), batch)
        for layout, work, runs in (("one run", whole, 1), ("a run each", alone, devices))[: 2 if devices > 1 else 1]:
            time = step_time(work, hardware, devices, runs, given)
            yield {
                "hardware": hardware.name,
                "classes": classes,
                "devices": devices,
                "layout": layout,
                **dataclasses.asdict(time),
                "seconds": time.seconds,
                "images_per_second": runs * batch / time.seconds,
                "limit": time.limit,
            }


@dataclasses.dataclass(frozen=True)
class Cells:
    """Sums over packs, each the seeds of one method on one dataset with one number of shots.

    Attributes:
      training, evaluation: FLOP.
      steps: programs started for training.
      augmented, decoded: images for training and for evaluation.
    """

    training: float = 0
    evaluation: float = 0
    steps: int = 0
    augmented: int = 0
    decoded: int = 0

    def __add__(self, other: "Cells") -> "Cells":
        return Cells(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def table1_cells(clip: Clip) -> Mapping[str, Cells]:
    """What `configs/table1.py` asks of the model, by method."""
    config = table1.get_config()
    sums: dict[str, Cells] = dict.fromkeys(config.methods, Cells())
    for name in config.datasets:
        kept = ENTRIES[name].test * 3 * clip.config.vision.image_size**2 <= KEPT_BYTES
        for index, method in enumerate(config.methods):
            options = {**config.method_options.get(method, {}), **config.method_options.get(f"{method}@{name}", {})}
            cells = dataset_cells(clip, method, name, config, options)
            # Kept images are decoded for the first method alone.
            sums[method] += dataclasses.replace(cells, decoded=0) if kept and index else cells
    return sums


def dataset_cells(clip: Clip, method: str, name: str, config: Any, options: Mapping[str, Any]) -> Cells:
    """All packs of one method on one dataset."""
    entry, geometry = ENTRIES[name], clip.config
    task = Task(clip, method, model.class_names(entry.classes), template=entry.template, **options)
    adaptation, trained = adaptation_of(task), bool(task.shapes)
    packs, runs = (len(config.shots), len(config.seeds)) if trained else (1, 1)
    kept = entry.test * 3 * geometry.vision.image_size**2 <= KEPT_BYTES

    classes = sum(flops.text(geometry, one, task.text.shared) for one in groups_of(task))
    images = flops.vision(geometry, entry.test, prompts=prompt_count(adaptation))
    if adaptation.changes_vision:
        images *= packs * runs
    else:  # one pass serves all runs of a pack, and of all packs where its features are kept
        images *= 1 if kept else packs
    similarity = packs * runs * flops.matmul((entry.test, geometry.projection_width, entry.classes))
    cells = Cells(evaluation=packs * runs * classes + images + similarity, decoded=entry.test * (1 if kept else packs))
    if not trained:
        return cells
    for shots in config.shots:
        size = entry.classes * shots
        batch, count = min(config.batch_size, size), config.epochs * steps_per_epoch(size, config.batch_size)
        work = training_step(task, batch)
        cells += Cells(training=runs * count * work.flop, steps=count, augmented=runs * count * batch)
    return cells


def hours(cells: Cells, rate: float, given: Assumptions, threads: int, *, apart: bool) -> float:
    """Of a method's cells on a device of so many FLOP per second, beside a host of so many decoding threads.

    `apart` says that the host decodes while the device computes; else both share the same cores.
    """
    train = cells.training / rate + cells.steps * given.dispatch_seconds, cells.augmented / (threads * given.cached)
    test = cells.evaluation / rate, cells.decoded / (threads * given.decoded)
    return sum(max(part) if apart else sum(part) for part in (train, test)) / 3600
