"""What happened to classes and to the images whose decision flipped, over all that the study looked at: tables."""

import numpy as np
import pandas as pd

from clipbias.explain.results import EFFECTS, changes
from clipbias.explain.uncertainty import shapley
from clipbias.report.study_results import StudyResults, label_of
from clipbias.report.table import MISSING, Table

CLASSES = 30  # rows of a table at most: with more classes, those that gained and lost most
# What the causal test's two ends say of an image, and what one effect alone must do to have done the same.
_FLIPS = {"became right": (0, 1), "became wrong": (1, 0)}


def image_tables(study: StudyResults) -> list[Table]:
    """All that there are; none without predictions."""
    if study.array("predictions/labels") is None or not study.tuned:
        return []
    return [table for table in (_classes(study), _flips(study)) if table is not None]


def answer_frame(study: StudyResults) -> pd.DataFrame:
    """A line for each image that all models answered: `label`, `zero_shot` (class numbers), and of each tuned model by
    its key +1 where tuning made the answer right, -1 where it made it wrong, else 0."""
    labels, before = study.present("predictions/labels"), study.present("predictions/zero_shot")
    found = {"label": labels, "zero_shot": before}
    kept = before >= 0
    for model in study.tuned:
        change = changes(study.results.arrays, model["key"])
        found[model["key"]] = np.select([change == 0, change == 1], [1, -1], 0)
        kept &= change >= 0
    return pd.DataFrame(found)[kept]


def _classes(study: StudyResults) -> Table:
    """Per class, zero-shot's accuracy and what it takes the class for, and every model's change of accuracy."""
    answers, names = answer_frame(study), study.scalars["dataset"]["class_names"]
    labels = {model["key"]: label_of(model) for model in study.tuned}
    rows, net = {}, {}
    for label, own in answers.groupby("label"):
        wrong = own["zero_shot"][own["zero_shot"] != label].value_counts(sort=False).sort_index()
        taken_for = f"{names[wrong.idxmax()]} ({wrong.max()} of {len(own)})" if len(wrong) else MISSING
        right = 100 * (own["zero_shot"] == label).mean()
        rows[label] = [names[label], str(len(own)), f"{right:.1f}", taken_for, *(_change(own[key]) for key in labels)]
        net[label] = own[[*labels]].mean().sum()
    order = sorted(rows, key=lambda label: (net[label], label))
    cut = len(order) > CLASSES
    shown = [*order[: CLASSES // 2], *order[-CLASSES // 2 :]] if cut else order
    caption = "Change of accuracy against zero-shot in points ± one standard error, of the images of a class."
    note = (
        "Classes by the sum of these changes, the largest losses first"
        + (f"; of {len(order)} classes the {CLASSES // 2} at either end" if cut else "")
        + ". In brackets how many images became right, and how many wrong."
    )
    columns = ("Class", "Images", "Zero-shot (%)", "Zero-shot takes it most for", *labels.values())
    return Table("Which classes gain and lose", caption, columns, [rows[x] for x in shown], words={3}, note=note)


def _change(steps: pd.Series) -> str:
    """A class's change of accuracy, from what became of its images."""
    error = f" ± {100 * steps.sem():.1f}" if len(steps) > 1 else ""
    return f"{100 * steps.mean():+.1f}{error} ({(steps == 1).sum()}, {(steps == -1).sum()})"


def _flips(study: StudyResults) -> Table | None:
    """Of the images whose decision flipped: which effect decided, and which would have sufficed alone."""
    rows = []
    for model in study.tuned:
        facts = study.section("factorial", model["key"])
        if not facts.get("streams"):
            continue
        effects, key = list(facts["effects"]), model["key"]
        # Both towers, from the frozen to the tuned model.
        both = list(facts["towers"]).index("both")
        right = study.present(f"factorial/{key}/correct")[:, both].astype(bool)
        values = shapley(study.present(f"factorial/{key}/calibrated")[:, both])
        alone = {name: right[:, 2 ** (len(effects) - 1 - number)] for number, name in enumerate(effects)}
        for name, (before, after) in _FLIPS.items():
            own = (right[:, 0] == before) & (right[:, -1] == after)
            decided = np.argmax((1 if after else -1) * values[own], axis=1)
            parts = [decided == effects.index(each) if each in effects else None for each in EFFECTS]
            parts += [alone[each][own] == after if each in effects else None for each in EFFECTS]
            rows.append([label_of(model), name, str(own.sum()), *map(_part, parts)])
    caption = "Images whose decision flipped from the frozen model to the tuned one, in percent ± one standard error."
    note = (
        "Decided: the effect whose Shapley value of the calibrated log-likelihood did most in that direction. Alone:"
        " this effect taken from the tuned model and nothing else of it flips the decision as well; several may"
        " suffice, or none."
    )
    heads = [f"{name} {what}" for what in ("decided", "alone") for name in EFFECTS]
    columns = ("Model", "Images that", "Number", *heads)
    return Table("What flipped decisions", caption, columns, rows, words={1}, note=note) if rows else None


def _part(chosen: np.ndarray | None) -> str:
    if chosen is None or not len(chosen):
        return MISSING
    share = float(chosen.mean())
    return f"{100 * share:.0f} ± {100 * (share * (1 - share) / len(chosen)) ** 0.5:.0f}"
