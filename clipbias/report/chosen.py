"""Learning rates that were chosen on validation images, as the rows of a table tell of them, and a table of them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipbias.report.names import method_name
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING, Table, TableCell


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One choice.

    Attributes:
      learning_rate: what was chosen.
      dataset, shots: what for; `None` where it was for all of a method's.
      cells: by how many cells (dataset and shots) it was chosen.
      tried: the mean accuracy in percent on validation images by learning rate; `None` where a run failed.
    """

    learning_rate: float
    dataset: str | None
    shots: int | None
    cells: int
    tried: tuple[tuple[float, float | None], ...]


def chosen_rates(rows: Iterable[Mapping[str, Any]]) -> tuple[Chosen, ...]:
    """Those that the rows of one method tell of, each once."""
    found = []
    for row in rows:
        choice = row.get("choice")
        if not choice or row.get("learning_rate") is None:
            continue
        own = choice.get("for") == "cell"
        tried = tuple((one["learning_rate"], one.get("accuracy")) for one in choice.get("tried") or ())
        dataset, shots = (row["dataset"], int(row.get("shots") or 0)) if own else (None, None)
        found.append(Chosen(row["learning_rate"], dataset, shots, choice.get("cells") or 0, tried))
    return tuple(dict.fromkeys(found))


def chosen_table(chosen: Mapping[str, Sequence[Chosen]]) -> Table | None:
    """What each method's learning rates came to on validation images, and which was chosen; `None` without a choice.

    Args:
      chosen: by method.
    """
    every = [(method, one) for method, own in chosen.items() for one in own]
    if not every:
        return None
    rates = sorted({rate for _, one in every for rate, _ in one.tried})
    each = any(one.dataset is not None for _, one in every)

    def row(method: str, one: Chosen) -> tuple[TableCell, ...]:
        tried = dict(one.tried)
        where = [dataset_name(one.dataset or ""), str(one.shots)] if each else []
        return (
            *map(TableCell, (method_name(method), *where, f"{one.learning_rate:g}")),
            *(_accuracy(rate in tried, tried.get(rate), rate == one.learning_rate) for rate in rates),
        )

    cells = sorted({one.cells for _, one in every})
    over = "its seeds" if each else f"the seeds of each dataset and number of shots ({cells[0]} together)"
    caption = (
        f"Top-1 accuracy on validation images in percent by learning rate, the mean over {over}. The highest was chosen"
        " (bold), of equal ones that of the lower cross-entropy, before any test image was looked at; the other tables"
        " are of the chosen ones alone."
    )
    columns = ("Method", *(("Dataset", "Shots") if each else ()), "Chosen", *(f"{rate:g}" for rate in rates))
    return Table("Learning rates", caption, columns, tuple(row(*one) for one in every), words={1} if each else ())


def _accuracy(is_tried: bool, accuracy: float | None, is_chosen: bool) -> TableCell:
    if accuracy is None:
        return TableCell("failed", failed=True) if is_tried else TableCell(MISSING)
    return TableCell(f"{accuracy:.1f}", rank=1 if is_chosen else 0)
