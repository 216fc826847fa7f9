"""Which images are held out to choose settings and to calibrate: one rule for every command and for `fit`.

They are validation images where there is a validation split; else at most a quarter of the training images of each
class. Each image has one use: what chose a setting never calibrates. `docs/datasets.md` states the rule for users.
Images without labels, from which forms and distilled models learn, are divided here as well.
"""

import dataclasses

import numpy as np

from clipbias.data.dataset import Dataset, Split
from clipbias.data.files import common_folder
from clipbias.data.folder import divide
from clipbias.data.protocols import EvalProtocol, validation_outside_test
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted

# The validation policy of runs whose images are held out by this rule (`RunSpec.validation`).
POLICY = "held-out images"
# That of runs for which one training image of each class selects, and trains nothing (`hold_out_a_shot`).
SHOT = "held-out shot"
# A class with fewer training images has none to spare.
FEWEST_OF_CLASS = 3
QUARTER = 4
# More images of a class hardly change a choice; the others calibrate.
MOST_TO_CHOOSE = 16
# A temperature or a threshold of fewer images says nothing.
FEWEST_TO_CALIBRATE = 10
# With so many images the standard error of the coverage is one point; more only take time.
MOST_TO_CALIBRATE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Training images, and the images that are held out of them or beside them.

    `train` trains while settings are compared: all training images, or those that are not held out.
    """

    train: Split
    choose: Split | None  # settings are compared on them; `None` where nothing can be held out
    calibrate: Split | None = None  # `None` where too few images are left
    from_training: bool = False  # those that choose are training images, on which the tuned model trains in the end
    reason: str = ""  # why nothing can be held out


def hold_out(train: Split, validation: Split | None, *, seed: int, calibrates: bool = False) -> HeldOut:
    """Holds out images by the rule, of a validation split without test images or of a run's training images.

    Of each class's images, in an order drawn with the seed, the first are taken. Where images are needed to calibrate,
    too, those of validation are dealt in turn; the first one of each class chooses. Fewer than ten cannot calibrate,
    and all choose. Training images never calibrate.
    """
    if validation is not None and len(validation):
        by_class = _by_class(validation, seed)
        # Of each class every second image calibrates, and all beyond those that choose.
        calibrating = [rows[~np.isin(rows, rows[::2][:MOST_TO_CHOOSE])] for rows in by_class]
        if not calibrates or sum(map(len, calibrating)) < FEWEST_TO_CALIBRATE:
            return HeldOut(train, _subset(validation, [rows[:MOST_TO_CHOOSE] for rows in by_class]))
        choosing = [np.setdiff1d(rows, rest) for rows, rest in zip(by_class, calibrating, strict=True)]
        return HeldOut(train, _subset(validation, choosing), _subset(validation, calibrating))
    by_class = _by_class(train, seed)
    fewest = min(map(len, by_class), default=0)
    if fewest < FEWEST_OF_CLASS:
        pictures = "no training image" if not fewest else f"a class with {counted(fewest, 'training image')}"
        return HeldOut(train, None, reason=f"there are no validation images, and there is {pictures}")
    choosing = [rows[: min(max(1, fewest // QUARTER), MOST_TO_CHOOSE)] for rows in by_class]
    rest = np.setdiff1d(np.arange(len(train)), np.concatenate(choosing))
    return HeldOut(train.subset(rest), _subset(train, choosing), from_training=True)


def hold_out_of(protocol: EvalProtocol, seed: int, *, calibrates: bool = False) -> HeldOut:
    """Holds out images of a run's few-shot split, or of its dataset's validation split."""
    return hold_out(protocol.source.split("train"), _validation_split(protocol), seed=seed, calibrates=calibrates)


def left_to_calibrate(
    protocol: EvalProtocol, seed: int, *, selects: bool, trains: bool = True, required: bool = False
) -> Split | None:
    """The images that prediction sets are calibrated on: they neither train nor select a setting.

    Where no held-out image `selects` a setting, all validation images calibrate. Where the method never `trains`,
    training images calibrate if there are no others.

    They are at most about 1,000, as many of each class where there are more; `None` where fewer than ten are left, or
    `ClipbiasError` if they are required.
    """
    images = hold_out_of(protocol, seed, calibrates=True).calibrate if selects else _validation_split(protocol)
    if images is None and not trains:
        images = protocol.source.split("train")
    if images is None or len(images) < FEWEST_TO_CALIBRATE:
        if required:
            raise ClipbiasError(
                f"fewer than {FEWEST_TO_CALIBRATE} images neither train nor select a setting, so that none calibrate; "
                "give validation images, or leave `calibrate` out."
            )
        return None
    if len(images) <= MOST_TO_CALIBRATE:
        return images
    by_class = _by_class(images, seed)
    return _subset(images, [rows[: -(-MOST_TO_CALIBRATE // len(by_class))] for rows in by_class])


def by_the_rule(protocol: EvalProtocol, seed: int) -> EvalProtocol:
    """The protocol whose validation images, for choosing and for calibration, are those of the rule."""

    def choose() -> Split | None:
        held = hold_out_of(protocol, seed, calibrates=True)
        return None if held.from_training else held.choose

    def calibrate() -> Split | None:
        return hold_out_of(protocol, seed, calibrates=True).calibrate

    return dataclasses.replace(protocol, validation=choose, calibration=calibrate)


def hold_out_a_shot(protocol: EvalProtocol, seed: int) -> EvalProtocol:
    """The protocol in which one training image of each class selects settings, and the others train (HOSO, 2603.04341).

    No other image is seen: none calibrates. A class with a single training image keeps it for training. Raises
    `ClipbiasError` where no class has a second one.
    """
    source = protocol.source
    train = source.split("train")
    held = [rows[:1] for rows in _by_class(train, seed) if len(rows) > 1]
    if not held:
        raise ClipbiasError(
            f"no class of {source.name} has a second training image, so no shot can be held out; take more "
            "--config.shots, or leave out --config.hold_out_shot."
        )
    rest = np.setdiff1d(np.arange(len(train)), np.concatenate(held))
    splits = {**source.splits, "train": train.subset(rest)}
    return dataclasses.replace(
        protocol,
        source=dataclasses.replace(source, splits=splits),
        validation=lambda: _subset(train, held),
        calibration=lambda: None,
    )


def _validation_split(protocol: EvalProtocol) -> Split | None:
    """The validation split without test images; `None` where the protocol has training images in its place."""
    tested = protocol.evaluations[0].dataset.split("test")
    unused = validation_outside_test(tested, protocol.source.splits.get("val"))
    return None if unused is None else protocol.validation()


def _by_class(split: Split, seed: int) -> list[np.ndarray]:
    """The images of each class that has any, in an order drawn with the seed."""
    order = np.random.default_rng(seed).permutation(len(split))
    return [order[split.labels[order] == label] for label in np.unique(split.labels)]


def _subset(split: Split, by_class: list[np.ndarray]) -> Split:
    return split.subset(np.sort(np.concatenate(by_class)))


# Images without labels: those of training and of validation.

# Share of the images that nothing is fitted on. Names tell which, since `hold_out` reads labels.
HELD_BACK = 0.2


def unlabelled_images(dataset: Dataset, evaluated: Split) -> Split | None:
    """Training and validation images that are not those of `evaluated`, labels 0; `None` where there are none."""
    parts = [dataset.splits.get("train"), dataset.splits.get("val")]
    splits = [images for part in parts if part is not None and len(images := _without_copies(part, evaluated))]
    if not splits:
        return None
    return without_labels(splits[0] if len(splits) == 1 else _joined(*splits))


def _without_copies(images: Split, *others: Split) -> Split:
    """The images that are not among the others, by path; a user's own not by content either, under whatever path.

    Bytes are read where marks, such as sizes of files, are equal. The benchmark's lists are those of its authors.
    """
    for other in others:
        images = images.without(other)
        if not images.upright:
            continue
        marks, theirs = images.marks(), other.marks()
        if len(marks) != len(images) or len(theirs) != len(other):  # of a whole table, whose rows are told by name
            continue
        shared = set(marks) & set(theirs)
        contents = {other.content(row) for row, mark in enumerate(theirs) if mark in shared} - {""}
        rest = [n for n, mark in enumerate(marks) if mark not in shared or images.content(n) not in contents]
        images = images.subset(rest) if len(rest) < len(images) else images
    return images


def without_labels(images: Split) -> Split:
    """The same images, all with label 0."""
    return dataclasses.replace(images, labels=np.zeros(len(images), np.int32))


def divide_unlabelled(images: Split, *, certified: bool = False) -> tuple[Split, Split, Split]:
    """Images to fit on, images that are held back, and with `certified` so many again for a certificate.

    A copy of an image that is in one list already is left out.
    """
    shares = (HELD_BACK, HELD_BACK if certified else 0.0)
    images = without_labels(images)
    fitted, held_back, rest = (images.subset(part) for part in divide(images, shares))
    return fitted, _without_copies(held_back, fitted), _without_copies(rest, fitted, held_back)


def _joined(first: Split, second: Split) -> Split:
    """The images of two splits of a dataset; an image that is in both comes once."""
    second = second.without(first)

    def read(index: int) -> bytes:
        return first.read(index) if index < len(first) else second.read(index - len(first))

    labels = np.concatenate([first.labels, second.labels])
    if first.source == second.source:
        return dataclasses.replace(first, keys=(*first.keys, *second.keys), labels=labels, read=read)
    contents = first.contents if first.contents is second.contents else None
    paths = (*first.paths, *second.paths)
    folder = common_folder(paths)
    keys = [path[len(folder) :] for path in paths]
    return dataclasses.replace(first, keys=keys, labels=labels, read=read, source=folder, contents=contents)
