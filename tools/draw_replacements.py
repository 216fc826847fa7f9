"""Draws, over finished studies, what can stand in each method's place: fitted forms, forms of labels, and the mean.

    python -m tools.draw_replacements workdir/frontier/study --to=docs/images/replacements.png

The arguments are folders of `experiments.explain` with the section `replacement`, one for each dataset; a folder that
holds several studies stands for all of them. Prints what fitted forms do over seeds and datasets, and what follows from
it, and writes the picture, and beside it as CSV its numbers and, as `…_pooled.csv`, that table. `--methods=IVLP,VPT`
draws these methods; the table, the sentences and the CSV have all.
"""

from collections.abc import Sequence

import pandas as pd
from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.explain.replacement_pooled import pool_replacements
from clipbias.report.captioned import write_csv
from clipbias.report.replacement_figure import pooled_table, replacement_figure
from clipbias.report.table import render
from experiments import common
from tools.study_pictures import read_studies, save_picture

METHODS = flags.DEFINE_list("methods", [], "Methods that are drawn, by name; without it those with the most models.")


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    studies = read_studies(names, "draw_replacements")
    pooled = pool_replacements(studies)
    if not pooled:
        raise ClipbiasError("nothing was fitted in these studies; run them with --config.sections=replacement.")
    table = pooled_table(pooled)
    print(render(table, "text"))
    common.tell(table.caption, "", *(form.sentence for method in pooled for form in method.forms.values()), "")
    figure = replacement_figure(studies, METHODS.value)
    if figure is None:
        raise ClipbiasError("no gain is sure in these studies, so there is no share of one to draw.")
    picture = save_picture(figure)
    write_csv(picture.with_name(f"{picture.stem}_pooled.csv"), pd.DataFrame(table.rows, columns=table.columns))
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
