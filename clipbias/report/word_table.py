"""The nearest words of learned text prompts as a table."""

from clipbias.explain.results import PromptWords, StudyResults, present
from clipbias.report.study_figures import labels_of
from clipbias.report.table import Table, cells
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
