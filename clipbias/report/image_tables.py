"""What happened to classes and to single images, over all that the study looked at: tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.explain.results import EFFECTS, changes
from clipbias.explain.uncertainty import shapley
from clipbias.report.study_results import StudyResults, label_of
from clipbias.report.table import MISSING, Table, TableCell, cells

CLASSES = 30  # rows of a table at most: with more classes, those that gained and lost most
EXTREMES = 5  # images at each end
# What the causal test's two ends say of an image, and what one effect alone must do to have done the same.
_FLIPS = {"became right": (0, 1), "became wrong": (1, 0)}


def image_tables(study: StudyResults) -> list[Table]:
    """All that there are; none without predictions."""
    if study.array("predictions/labels") is None or not study.tuned:
        return []
    tables = [_classes(study), _flips(study), _extremes(study)]
    return [table for table in tables if table is not None]


def _classes(study: StudyResults) -> Table:
    """Per class, zero-shot's accuracy and what it takes the class for, and every model's change of accuracy."""
    labels, before = study.present("predictions/labels"), study.present("predictions/zero_shot")
    names = study.scalars["dataset"]["class_names"]
    found, net = {}, {}
    for label in range(len(names)):
        own = (labels == label) & (before >= 0)
        if not own.any():
            continue
        wrong = before[own & (before != label)]
        taken_for = MISSING
        if len(wrong):
            counts = np.bincount(wrong, minlength=len(names))
            taken_for = f"{names[int(counts.argmax())]} ({counts.max()} of {own.sum()})"
        row = [
            TableCell(names[label]),
            *cells(str(own.sum()), f"{100 * (before[own] == label).mean():.1f}", taken_for),
        ]
        total = 0.0
        for model in study.tuned:
            change = changes(study.results.arrays, model["key"])[own]
            cell, points = _change(change[change >= 0])
            row.append(cell)
            total += points
        found[label], net[label] = tuple(row), total
    order = sorted(found, key=lambda label: (net[label], label))
    cut = len(order) > CLASSES
    shown = [*order[: CLASSES // 2], *order[-CLASSES // 2 :]] if cut else order
    caption = (
        "Classes by the sum of these changes, the largest losses first"
        + (f"; of {len(order)} classes the {CLASSES // 2} at either end" if cut else "")
        + ". Change of accuracy against zero-shot in points ± one standard error over a class's images, and in brackets"
        " how many of them became right, and how many wrong."
    )
    columns = ("Class", "Images", "Zero-shot (%)", "Zero-shot takes it most for", *map(label_of, study.tuned))
    return Table("Which classes gain and lose", caption, columns, tuple(found[label] for label in shown), words={3})


def _change(change: np.ndarray) -> tuple[TableCell, float]:
    """A class's change of accuracy, from what became of its images."""
    if not len(change):
        return TableCell(MISSING), 0.0
    steps = np.select([change == 0, change == 1], [1.0, -1.0], 0.0)
    points = 100 * float(steps.mean())
    spread = f"± {100 * steps.std(ddof=1) / len(steps) ** 0.5:.1f}" if len(steps) > 1 else ""
    right, wrong = int((change == 0).sum()), int((change == 1).sum())
    return TableCell(f"{points:+.1f}", spread, f"{right}, {wrong}"), points


def _tested(study: StudyResults) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Models that the causal test has, with what it says of them."""
    found = [(model, study.section("factorial", model["key"])) for model in study.tuned]
    return [(model, facts) for model, facts in found if facts.get("streams")]


def _ends(study: StudyResults, key: str, facts: Mapping[str, Any], name: str) -> np.ndarray:
    """An outcome of the causal test in both towers, `[n, 2^k]`: the corners from the frozen to the tuned model."""
    place, corners = list(facts["towers"]).index("both"), 2 ** len(facts["effects"])
    return study.present(f"factorial/{key}/{name}")[:, place, :corners]


def _flips(study: StudyResults) -> Table | None:
    """Of the images whose decision flipped: which effect decided, and which would have sufficed alone."""
    rows = []
    for model, facts in _tested(study):
        right = _ends(study, model["key"], facts, "correct").astype(bool)
        values = shapley(_ends(study, model["key"], facts, "log_likelihood"))
        effects = list(facts["effects"])
        alone = {name: right[:, 2 ** (len(effects) - 1 - place)] for place, name in enumerate(effects)}
        for name, (before, after) in _FLIPS.items():
            own = (right[:, 0] == before) & (right[:, -1] == after)
            decided = np.argmax((1 if after else -1) * values[own], axis=1)
            row = [label_of(model), name, str(own.sum())]
            row += [_part(decided == effects.index(each)) if each in effects else MISSING for each in EFFECTS]
            row += [_part(alone[each][own] == after) if each in effects else MISSING for each in EFFECTS]
            rows.append(cells(*row))
    if not rows:
        return None
    caption = (
        "Over the causal test's images whose decision flipped from the frozen model to the tuned one, in percent ± one"
        " binomial standard error. Decided: the effect whose Shapley value of the log-likelihood did most in that"
        " direction. Alone: this effect taken from the tuned model and nothing else of it flips the decision as well;"
        " several may suffice, or none."
    )
    columns = (
        "Model",
        "Images that",
        "Number",
        *(f"{name} decided" for name in EFFECTS),
        *(f"{name} alone" for name in EFFECTS),
    )
    return Table("What flipped decisions", caption, columns, tuple(rows), words={1})


def _part(chosen: np.ndarray) -> str:
    if not len(chosen):
        return MISSING
    share = float(chosen.mean())
    return f"{100 * share:.0f} ± {100 * (share * (1 - share) / len(chosen)) ** 0.5:.0f}"


def _extremes(study: StudyResults) -> Table | None:
    """The images whose margin every model raised and lowered most."""
    names, labels = study.scalars["dataset"]["class_names"], study.present("predictions/labels")
    explored = study.array("explore/images")
    known = dict(
        zip(explored.tolist() if explored is not None else (), study.section("explore").get("names", ()), strict=False)
    )
    rows = []
    for model, facts in _tested(study):
        numbers = study.present(f"factorial/{model['key']}/images")
        margins = _ends(study, model["key"], facts, "margin")[:, [0, -1]].astype(float)
        gain = margins[:, 1] - margins[:, 0]
        order = np.argsort(-gain, kind="stable")
        most = dict.fromkeys([*order[:EXTREMES], *order[-EXTREMES:]])
        for place in most:
            number = int(numbers[place])
            said = (study.present(f"predictions/{key}")[number] for key in ("zero_shot", model["key"]))
            rows.append(
                cells(
                    label_of(model),
                    known.get(number, f"number {number}"),
                    names[labels[number]],
                    *(names[label] if label >= 0 else MISSING for label in said),
                    *(f"{value:+.2f}" for value in (*margins[place], gain[place])),
                )
            )
    if not rows:
        return None
    caption = (
        f"The {EXTREMES} images of the causal test whose margin, the true class's logit minus the best other's, each"
        f" model raised most, and the {EXTREMES} whose it lowered most. Images that can be explored go by their names,"
        " the others by their numbers in the dataset, from 0."
    )
    columns = ("Model", "Image", "Class", "Zero-shot says", "The model says", "Frozen margin", "Tuned margin", "Change")
    return Table("Where margins changed most", caption, columns, tuple(rows))
