"""Tables of a study: what happened to classes, and the nearest words of learned text prompts."""

import numpy as np
import pandas as pd

from clipbias.explain.results import PromptWords, StudyResults, present
from clipbias.report.study_figures import labels_of
from clipbias.report.table import MISSING, Table, cells
from clipbias.sentences import counted

MOST_ROWS = 96  # on the page; the results have all
_CAPTION = (
    "The vocabulary's tokens nearest to each learned text prompt, with Euclidean distances; a hyphen ends a piece of a"
    " word. Last column: the mean distance to the whole vocabulary; nearest words that are hardly nearer than that say"
    " nothing. Prompts of deeper layers stand in the place of hidden states, which are no words."
)


def word_table(study: StudyResults) -> Table | None:
    """A row per prompt; `None` where there is no learned text prompt."""
    labels = labels_of(study.tuned)
    prompts = [(labels[key], prompt) for key, result in present(study.words).items() for prompt in result.prompts]
    rows = tuple(_row(label, prompt) for label, prompt in prompts[:MOST_ROWS])
    more = len(prompts) - len(rows)
    caption = _CAPTION + (f" {counted(more, 'more prompt')} in results.json." if more else "")
    columns = ("Model", "Prompt", "Nearest words (distance)", "Mean")
    return Table("", caption, columns, rows, words={2}) if rows else None


def _row(label: str, prompt: PromptWords) -> tuple[str, ...]:
    words = zip(prompt.words, prompt.distances, strict=True)
    return cells(
        label if prompt.class_name is None else f"{label}, {prompt.class_name}",
        str(prompt.prompt + 1),
        ", ".join(f"{word} ({distance:.3g})" for word, distance in words),
        f"{prompt.mean_distance:.3g}",
    )


CLASSES = 30  # rows of a table at most: with more classes, those that gained and lost most


def image_tables(study: StudyResults) -> list[Table]:
    """The table of classes; none of a study without tuned models."""
    return [_classes(study)] if study.tuned else []


def answer_frame(study: StudyResults) -> pd.DataFrame:
    """A line for each image that all models answered: `label`, `zero_shot` (class numbers), and of each tuned model by
    its key +1 where tuning made the answer right, -1 where it made it wrong, else 0."""
    predictions = study.predictions
    columns = {"label": predictions.labels, "zero_shot": predictions.zero_shot}
    answered = predictions.zero_shot >= 0
    for model in study.tuned:
        changes = predictions.changes(model.key)
        columns[model.key] = np.select([changes == 0, changes == 1], [1, -1], 0)
        answered &= changes >= 0
    return pd.DataFrame(columns)[answered]


def _classes(study: StudyResults) -> Table:
    """Per class, zero-shot's accuracy and what it takes the class for, and every model's change of accuracy."""
    answers = answer_frame(study)
    names = study.dataset.class_names
    labels = labels_of(study.tuned)
    rows = {}
    net = {}
    for label, images in answers.groupby("label"):
        wrong = images["zero_shot"][images["zero_shot"] != label].value_counts(sort=False).sort_index()
        taken_for = f"{names[wrong.idxmax()]} ({wrong.max()} of {len(images)})" if len(wrong) else MISSING
        right = 100 * (images["zero_shot"] == label).mean()
        changes = [_change(images[key]) for key in labels]
        rows[label] = [names[label], str(len(images)), f"{right:.1f}", taken_for, *changes]
        net[label] = images[list(labels)].mean().sum()
    order = sorted(rows, key=lambda label: (net[label], label))
    cut = len(order) > CLASSES
    shown = order[: CLASSES // 2] + order[-CLASSES // 2 :] if cut else order
    ends = f"; of {len(order)} classes the {CLASSES // 2} at either end" if cut else ""
    return Table(
        "Which classes gain and lose",
        "Change of accuracy against zero-shot in points ± one standard error, of the images of a class.",
        ("Class", "Images", "Zero-shot (%)", "Zero-shot takes it most for", *labels.values()),
        [rows[label] for label in shown],
        words={3},
        note=f"Classes by the sum of these changes, the largest losses first{ends}. In brackets how many images became"
        " right, and how many wrong.",
    )


def _change(steps: pd.Series) -> str:
    """A class's change of accuracy, from what became of its images."""
    error = f" ± {100 * steps.sem():.1f}" if len(steps) > 1 else ""
    return f"{100 * steps.mean():+.1f}{error} ({(steps == 1).sum()}, {(steps == -1).sum()})"
