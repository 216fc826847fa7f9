"""Tables of the scores that count each class alike: balanced accuracy, macro-F1, and the worst class."""

from collections.abc import Sequence

import pandas as pd

from clipbias.report.accuracy_tables import shots_words, training_words
from clipbias.report.errors import Answers
from clipbias.report.frames import ACCURACY, AVERAGE, CellKey, Row, Sweep, cell_frame, cell_lines, run_frame
from clipbias.report.names import dataset_name, method_name
from clipbias.report.table import MISSING, Table
from clipbias.sentences import counted

TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "worst_accuracy": "Accuracy of the worst class",
}
_MEANINGS = {
    "balanced_accuracy": "the mean over classes of their accuracies",
    "macro_f1": "the mean over classes of the harmonic mean of precision and recall",
    "worst_accuracy": "the lowest accuracy of a class",
}


def class_tables(sweep: Sweep, measures: Sequence[str]) -> list[Table]:
    """For each measure of `data.confusion.CLASS_MEASURES` and each number of shots a table, methods by datasets."""
    return [table for measure in measures for table in _tables_of(sweep, measure)]


def _tables_of(sweep: Sweep, measure: str) -> list[Table]:
    def values(row: Row) -> dict[str, float]:
        return {name: summary[measure] for name, summary in _summaries(row).items()}

    runs = run_frame(sweep.rows, values)
    if runs.empty:
        return []
    lines = cell_lines(cell_frame(runs, sweep.shots, sweep.datasets, Answers(None)))
    evaluations = tuple(dict.fromkeys(runs["measure"]))
    made = []
    for shots in sweep.shots:
        columns: dict[str, list[str]] = {}
        for evaluation in evaluations:
            for dataset in sweep.columns:
                keys = [(evaluation, method, dataset, shots) for method in sweep.methods]
                columns[_head(evaluation, dataset)] = [_text(lines, key) for key in keys]
        caption = f"{TITLES[measure]} in percent, {_MEANINGS[measure]}; {training_words(sweep, shots)}."
        made.append(
            Table.of(
                pd.DataFrame(columns, index=list(map(method_name, sweep.methods))),
                f"{TITLES[measure]}, {shots_words(shots)}" if shots else TITLES[measure],
                caption,
                note=" ".join(["±: one standard error over seeds.", *_left_out(sweep)]),
            )
        )
    return made


def _summaries(row: Row) -> dict[str, Row]:
    """The class summaries of a run by evaluation."""
    if "class_summaries" in row:
        return dict(row["class_summaries"])
    return {ACCURACY: row["class_summary"]} if "class_summary" in row else {}


def _head(evaluation: str, dataset: str) -> str:
    name = dataset if dataset == AVERAGE else dataset_name(dataset)
    return name if evaluation == ACCURACY else f"{name}, {dataset_name(evaluation)}"


def _text(lines: dict[CellKey, Row], key: CellKey) -> str:
    line = lines.get(key)
    if line is None:
        return MISSING
    return f"{line['mean']:.1f}" + (f" ± {line['seeds_error']:.1f}" if line["drawn"] and line["seeds"] > 1 else "")


def _left_out(sweep: Sweep) -> list[str]:
    """A sentence for each dataset that has classes without test images."""
    by_dataset = {
        row["dataset"]: names
        for row in sweep.rows
        for summary in _summaries(row).values()
        if (names := summary.get("untested_classes"))
    }
    return [
        f"Left out of {dataset_name(name)}: {counted(len(classes), 'class')} without test images "
        f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})."
        for name, classes in by_dataset.items()
    ]
