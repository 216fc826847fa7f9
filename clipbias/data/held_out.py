"""Held-out images for the choice of settings and for calibration, by one rule for all commands and `fit`.

They are validation images, or without any at most a quarter of the training images of each class. An image that chooses
a setting never calibrates (`docs/datasets.md`). Images without labels, for distillation, are divided here, too.
"""

import dataclasses

import numpy as np

from clipbias.data.dataset import Dataset, Split
from clipbias.data.files import common_folder
from clipbias.data.folder import divide
from clipbias.data.protocols import EvalProtocol, validation_outside_test
from clipbias.errors import ClipbiasError
from clipbias.sentences import counted

# Validation policies of runs (`RunSpec.validation`): this rule, and a training image of each class (`hold_out_a_shot`).
POLICY = "held-out images"
SHOT = "held-out shot"
# A class with fewer training images has none to spare.
FEWEST_OF_CLASS = 3
# More images of a class hardly change a choice; the others calibrate.
MOST_TO_CHOOSE = 16
# Fewer images do not determine a temperature or a threshold.
FEWEST_TO_CALIBRATE = 10
# With so many images the standard error of the coverage is one point; more only take time.
MOST_TO_CALIBRATE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that train while settings are compared, choose settings, and calibrate."""

    train: Split
    choose: Split | None  # `None` if nothing can be held out
    calibrate: Split | None = None  # `None` if too few images are left
    from_training: bool = False  # whether `choose` are training images, which train the final model
    reason: str = ""  # why nothing can be held out


def hold_out(train: Split, validation: Split | None, *, seed: int, calibrates: bool = False) -> HeldOut:
    """Holds out images by the rule, from a validation split without test images, else from training images."""
    if validation is not None and len(validation):
        by_class = rows_by_class(validation, seed)
        # In an order drawn with the seed, the first image of a class chooses and every second one calibrates, with all
        # images beyond `MOST_TO_CHOOSE`. If these are too few to calibrate, all choose.
        calibrating = [rows[~np.isin(rows, rows[::2][:MOST_TO_CHOOSE])] for rows in by_class]
        if not calibrates or sum(map(len, calibrating)) < FEWEST_TO_CALIBRATE:
            return HeldOut(train, subset_of_rows(validation, [rows[:MOST_TO_CHOOSE] for rows in by_class]))
        choosing = [np.setdiff1d(rows, rest) for rows, rest in zip(by_class, calibrating, strict=True)]
        return HeldOut(train, subset_of_rows(validation, choosing), subset_of_rows(validation, calibrating))
    by_class = rows_by_class(train, seed)
    fewest = min(map(len, by_class), default=0)
    if fewest < FEWEST_OF_CLASS:
        pictures = "no training image" if not fewest else f"a class with {counted(fewest, 'training image')}"
        return HeldOut(train, None, reason=f"there are no validation images, and there is {pictures}")
    # As many of every class, a quarter of the smallest one. Training images never calibrate: the final model has seen
    # them, and would be taken for better than it is.
    choosing = [rows[: min(max(1, fewest // 4), MOST_TO_CHOOSE)] for rows in by_class]
    rest = np.setdiff1d(np.arange(len(train)), np.concatenate(choosing))
    return HeldOut(train.subset(rest), subset_of_rows(train, choosing), from_training=True)


def hold_out_of(protocol: EvalProtocol, seed: int, *, calibrates: bool = False) -> HeldOut:
    """Holds out images of a protocol, by `hold_out`."""
    return hold_out(protocol.source.split("train"), _validation_split(protocol), seed=seed, calibrates=calibrates)


def left_to_calibrate(
    protocol: EvalProtocol, seed: int, *, selects: bool, trains: bool = True, required: bool = False
) -> Split | None:
    """Returns images that calibrate prediction sets; for fewer than ten, `None` or (`required`) `ClipbiasError`."""
    # Prediction sets keep their promise only on images that neither trained nor selected: all validation images, or
    # those that the rule leaves beside the ones that select.
    images = hold_out_of(protocol, seed, calibrates=True).calibrate if selects else _validation_split(protocol)
    # A model without training has not seen the training images either.
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
    by_class = rows_by_class(images, seed)
    return subset_of_rows(images, [rows[: -(-MOST_TO_CALIBRATE // len(by_class))] for rows in by_class])


def by_the_rule(protocol: EvalProtocol, seed: int) -> EvalProtocol:
    """Returns the protocol with validation and calibration images of the rule."""

    def choose() -> Split | None:
        held = hold_out_of(protocol, seed, calibrates=True)
        return None if held.from_training else held.choose

    return dataclasses.replace(
        protocol, validation=choose, calibration=lambda: hold_out_of(protocol, seed, calibrates=True).calibrate
    )


def hold_out_a_shot(protocol: EvalProtocol, seed: int) -> EvalProtocol:
    """Returns the protocol in which a training image of each class selects settings (HOSO, 2603.04341)."""
    # The other images train, and none calibrates. A class with a single image keeps it for training.
    source = protocol.source
    train = source.split("train")
    held = [rows[:1] for rows in rows_by_class(train, seed) if len(rows) > 1]
    if not held:
        raise ClipbiasError(
            f"no class of {source.name} has a second training image, so no shot can be held out; take more "
            "--config.shots, or leave out --config.hold_out_shot."
        )
    # The held-out shots never train, also not in the end: the number of shots includes them.
    rest = np.setdiff1d(np.arange(len(train)), np.concatenate(held))
    return dataclasses.replace(
        protocol,
        source=dataclasses.replace(source, splits={**source.splits, "train": train.subset(rest)}),
        validation=lambda: subset_of_rows(train, held),
        calibration=lambda: None,
    )


def _validation_split(protocol: EvalProtocol) -> Split | None:
    """Returns the validation split without test images; `None` if the protocol validates on training images."""
    unused = validation_outside_test(protocol.evaluations[0].dataset.split("test"), protocol.source.splits.get("val"))
    return None if unused is None else protocol.validation()


def rows_by_class(split: Split, seed: int) -> list[np.ndarray]:
    """Returns the indices of each class's images, in an order drawn with the seed."""
    order = np.random.default_rng(seed).permutation(len(split))
    return [order[split.labels[order] == label] for label in np.unique(split.labels)]


def subset_of_rows(split: Split, by_class: list[np.ndarray]) -> Split:
    return split.subset(np.sort(np.concatenate(by_class)))


# Images without labels: those of training and of validation.

# Share of the images that nothing is fitted on, by a hash of names: `hold_out` would read labels.
HELD_BACK = 0.2


def unlabelled_images(dataset: Dataset, evaluated: Split) -> Split | None:
    """Returns training and validation images that are not in `evaluated`, with labels 0; `None` without such images."""
    parts = [dataset.splits.get("train"), dataset.splits.get("val")]
    splits = [split for part in parts if part is not None and len(split := _without_copies(part, evaluated))]
    return without_labels(splits[0] if len(splits) == 1 else _joined(*splits)) if splits else None


def _without_copies(split: Split, *others: Split) -> Split:
    """Returns the images that are not among the others, by path, and for a user's images also by content."""
    # The benchmark's lists stay as published. A user's folder often has copies; bytes are read only if marks, such as
    # sizes of files, are equal.
    for other in others:
        split = split.without(other)
        if not split.upright:
            continue
        marks, theirs = split.marks(), other.marks()
        if len(marks) != len(split) or len(theirs) != len(other):  # marks of a whole table say nothing of an image
            continue
        shared = set(marks) & set(theirs)
        contents = {other.content(row) for row, mark in enumerate(theirs) if mark in shared} - {""}
        rest = [n for n, mark in enumerate(marks) if mark not in shared or split.content(n) not in contents]
        split = split.subset(rest) if len(rest) < len(split) else split
    return split


def without_labels(split: Split) -> Split:
    """Returns the images with label 0."""
    return dataclasses.replace(split, labels=np.zeros(len(split), np.int32))


def divide_unlabelled(split: Split, *, certified: bool = False) -> tuple[Split, Split, Split]:
    """Divides images into those to fit on, held-back ones, and with `certified` as many for a certificate."""
    # Copies of images in an earlier list are left out: a certificate on images that were fitted would be void.
    shares = (HELD_BACK, HELD_BACK if certified else 0.0)
    split = without_labels(split)
    fitted, held_back, rest = (split.subset(part) for part in divide(split, shares))
    return fitted, _without_copies(held_back, fitted), _without_copies(rest, fitted, held_back)


def _joined(first: Split, second: Split) -> Split:
    """Joins two splits of a dataset; an image of both comes once."""
    second = second.without(first)

    # The first split's images come first, as in `keys` below.
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
