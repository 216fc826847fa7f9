"""Evaluation protocols of the literature: training images, and test images with their classes for each table column."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from clipbias.data import catalog, demo
from clipbias.data.dataset import Dataset, Split
from clipbias.data.few_shot import MAX_VAL_SHOTS, imbalanced_counts
from clipbias.data.few_shot import few_shot as few_shot_indices
from clipbias.errors import ClipbiasError

Load = Callable[[str], Dataset]
IMBALANCED = "imbalanced"
# Dirichlet parameter of the protocol "imbalanced": all shares of the classes are equally likely.
CONCENTRATION = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Test images and classes of a column of a table."""

    name: str  # of the column: "test", "base", "new", or a dataset
    dataset: Dataset
    # Training labels of the classes, for learnables of a class; `None` if only names say whether training saw them.
    source_labels: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, eq=False)
class EvalProtocol:
    """Training images and test sets."""

    protocol: str
    source: Dataset  # training classes; the splits "train" and (optional) "val" are the few-shot split
    evaluations: tuple[EvaluationSet, ...]  # test sets in the order of a table
    unlabelled: Callable[[], Split]  # returns all training images of the training classes, for pseudo-labels
    # Returns the images that select settings, or `None`: the "val" split of the training classes without test images
    # (all of ImageNet's are), else training images outside the few-shot split, at most 4 per class.
    validation: Callable[[], Split | None] = lambda: None
    calibration: Callable[[], Split | None] | None = None  # returns the images that calibrate. Default: `validation`


def few_shot(dataset: Dataset, *, shots: int, seed: int) -> EvalProtocol:
    """`shots` images per class for training, all test images for evaluation (Zhou et al. 2022)."""
    return _drawn("few_shot", dataset, _picks(dataset, shots, seed), (_same_classes("test", dataset),), shots, seed)


def imbalanced(dataset: Dataset, *, shots: int, seed: int, concentration: float = CONCENTRATION) -> EvalProtocol:
    """As `few_shot`, but `shots` images per class on average, shared out by `few_shot.imbalanced_counts`."""
    available = np.bincount(dataset.split("train").labels, minlength=len(dataset.class_names))
    counts = imbalanced_counts(available, shots=shots, seed=seed, concentration=concentration)
    picks = _picks(dataset, shots, seed, counts)
    return _drawn(IMBALANCED, dataset, picks, (_same_classes("test", dataset),), shots, seed)


def pseudo_labels(dataset: Dataset, *, shots: int, seed: int) -> EvalProtocol:
    """As `few_shot`, but training picks images of `EvalProtocol.unlabelled` without labels (Huang et al. 2022)."""
    # No validation images, since these need labels. The training split is complete; its labels must not be used.
    # A setting that was selected with labels would break the promise of the protocol.
    splits = {name: split for name, split in dataset.splits.items() if name != "val"}
    source = dataclasses.replace(dataset, splits=splits)
    return EvalProtocol("pseudo_labels", source, (_same_classes("test", dataset),), lambda: dataset.split("train"))


def full(dataset: Dataset) -> EvalProtocol:
    """All training images, and all test images for evaluation."""
    train = dataset.split("train")
    validation = functools.partial(validation_outside_test, dataset.split("test"), dataset.splits.get("val"))
    return EvalProtocol("full", dataset, (_same_classes("test", dataset),), lambda: train, validation)


def validation_outside_test(evaluated: Split, validation: Split | None) -> Split | None:
    """Returns validation images that are not test images (all of ImageNet's are), or `None`."""
    if validation is None:
        return None
    unused = validation.without(evaluated)
    return unused if len(unused) else None


def validation_policy(dataset: Dataset) -> str:
    """Names the source of `EvalProtocol.validation`: "validation split", or "few-shot" for training images."""
    validation = validation_outside_test(dataset.split("test"), dataset.splits.get("val"))
    return "few-shot" if validation is None else "validation split"


def base_to_new(dataset: Dataset, *, shots: int, seed: int) -> EvalProtocol:
    """Trains on the first half of the classes, evaluates on both halves apart (Zhou et al. 2022, CoCoOp)."""
    classes = len(dataset.class_names)
    if classes < 2:
        raise ClipbiasError(f"{dataset.name} has {classes} class; base-to-new needs at least 2.")
    # The base classes are the larger half, as in CoCoOp's code.
    half = math.ceil(classes / 2)
    # Drawn among all classes, as CoCoOp's code does: base classes then have the same picks as in `few_shot`.
    picks = _picks(dataset, shots, seed)
    base = range(half)
    evaluations = (
        EvaluationSet("base", _tested(dataset.with_classes(base)), tuple(base)),
        EvaluationSet("new", _tested(dataset.with_classes(range(half, classes))), None),
    )
    return _drawn("base_to_new", dataset.with_classes(base), picks.with_classes(base), evaluations, shots, seed)


def cross_dataset(source: Dataset, targets: Sequence[Dataset], *, shots: int, seed: int) -> EvalProtocol:
    """Trains on a dataset, evaluates on it and on others with their classes."""
    others = tuple(EvaluationSet(target.name, _tested(target), None) for target in targets)
    evaluations = (_same_classes(source.name, source), *others)
    return _drawn("cross_dataset", source, _picks(source, shots, seed), evaluations, shots, seed)


def domain_generalization(source: Dataset, targets: Sequence[Dataset], *, shots: int, seed: int) -> EvalProtocol:
    """Trains on a dataset, evaluates on shifted sets of the same classes or a part of them.

    Classes are matched by `class_ids` if both have them, else by name. Raises `ClipbiasError` for another class.
    """
    # Training labels are named for each target, so that learnables of a class serve there, too.
    evaluations = [_same_classes(source.name, source)]
    for target in targets:
        # Names differ between ImageNet and its variants, and ImageNet has two "missile"; WordNet ids are unique.
        with_ids = bool(source.class_ids and target.class_ids)
        known = source.class_ids if with_ids else source.class_names
        identifiers = target.class_ids if with_ids else target.class_names
        label_of = {identifier: label for label, identifier in enumerate(known)}
        if unknown := [identifier for identifier in identifiers if identifier not in label_of]:
            raise ClipbiasError(
                f"{target.name} has the class {unknown[0]!r}, which {source.name} has not; domain generalisation needs "
                "the same classes or a part of them."
            )
        labels = tuple(label_of[identifier] for identifier in identifiers)
        evaluations.append(EvaluationSet(target.name, _tested(target), labels))
    return _drawn("domain_generalization", source, _picks(source, shots, seed), tuple(evaluations), shots, seed)


PROTOCOLS: Mapping[str, Callable[..., EvalProtocol]] = MappingProxyType(
    {
        "few_shot": few_shot,
        IMBALANCED: imbalanced,
        "full": full,
        "pseudo_labels": pseudo_labels,
        "base_to_new": base_to_new,
        "cross_dataset": cross_dataset,
        "domain_generalization": domain_generalization,
    }
)


# Protocols that test other datasets, too.
MULTI_DATASET = ("cross_dataset", "domain_generalization")


def targets_of(protocol: str, source: str, targets: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the datasets that a protocol tests besides `source`: the given ones, else the literature's."""
    # The literature has no targets for an embedded dataset: they are the other ones, or its classes in other styles.
    if protocol not in MULTI_DATASET:
        if targets:
            raise ClipbiasError(f"the protocol {protocol} stays within one dataset; leave targets empty.")
        return ()
    if targets:
        return tuple(targets)
    datasets, variants = (demo.MAIN, demo.EMOJI) if source in demo.NAMES else (catalog.ELEVEN, catalog.VARIANTS)
    return tuple(name for name in datasets if name != source) if protocol == "cross_dataset" else variants


def make_protocol(
    protocol: str,
    source: str,
    load: Load,
    *,
    shots: int = 16,
    seed: int = 1,
    targets: Sequence[str] | None = None,
    concentration: float = CONCENTRATION,
) -> EvalProtocol:
    """Makes a protocol of `PROTOCOLS`; `load` opens datasets by name. For `targets` see `targets_of`."""
    # "full" ignores shots and seed, and only "imbalanced" uses the concentration: sweeps pass the same settings to all.
    if protocol not in PROTOCOLS:
        raise ClipbiasError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}.")
    if protocol == "full":
        return full(load(source))
    if protocol == IMBALANCED:
        return imbalanced(load(source), shots=shots, seed=seed, concentration=concentration)
    names = targets_of(protocol, source, targets)
    if protocol not in MULTI_DATASET:
        return PROTOCOLS[protocol](load(source), shots=shots, seed=seed)
    return PROTOCOLS[protocol](load(source), [load(name) for name in names], shots=shots, seed=seed)


def _picks(dataset: Dataset, shots: int, seed: int, counts: np.ndarray | None = None) -> Dataset:
    """Reduces "train" and "val" to the few-shot split, with `counts [C]` training images if given."""
    train = dataset.split("train")
    val = dataset.splits.get("val")
    # Both splits in one call, since they share a stream of random numbers.
    train_indices, val_indices = few_shot_indices(
        train, val, shots=shots, seed=seed, class_names=dataset.class_names, counts=counts
    )
    splits = {**dataset.splits, "train": train.subset(train_indices)}
    if val is not None:
        splits["val"] = val.subset(val_indices)
    return dataclasses.replace(dataset, splits=splits)


def _drawn(
    protocol: str, dataset: Dataset, picks: Dataset, evaluations: tuple[EvaluationSet, ...], shots: int, seed: int
) -> EvalProtocol:
    """Returns the protocol that trains on `picks` of a dataset; its other images validate."""

    # A function, since few runs select settings and lists of ImageNet take time to compare.
    def validation() -> Split | None:
        if (unused := validation_outside_test(dataset.split("test"), dataset.splits.get("val"))) is not None:
            return unused
        rest = dataset.split("train").without(picks.split("train"))
        # As many as CoOp's validation images: a larger set would cost more labels than training does.
        per_class = min(shots, MAX_VAL_SHOTS)
        indices, _ = few_shot_indices(rest, None, shots=per_class, seed=seed, class_names=dataset.class_names)
        return rest.subset(indices) if len(indices) else None

    return EvalProtocol(protocol, picks, evaluations, lambda: dataset.split("train"), validation)


def _same_classes(name: str, dataset: Dataset) -> EvaluationSet:
    return EvaluationSet(name, _tested(dataset), tuple(range(len(dataset.class_names))))


def _tested(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, splits={"test": dataset.split("test")})
