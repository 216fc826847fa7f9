"""Draws, over finished studies, what can stand in each method's place.

    python -m tools.draw_replacements workdir/frontier/study --to=docs/images/replacements.png

The arguments are folders of `experiments.explain`, one for each dataset; a folder that holds several studies stands for
all of them. Prints what is concluded of each method on each dataset, and writes the picture, and beside it its numbers
as CSV. `--methods=IVLP,VPT` draws these methods; the sentences and the CSV have all.
"""

from collections.abc import Sequence

from absl import app, flags

from clipbias.errors import ClipbiasError
from clipbias.report.published import dataset_name
from clipbias.report.replacement_figure import replacement_figure
from experiments import common
from tools.study_pictures import read_studies, save_picture

METHODS = flags.DEFINE_list("methods", [], "Methods that are drawn, by name; without it all.")


def main(names: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    studies = read_studies(names, "draw_replacements")
    figure = replacement_figure(studies, METHODS.value)
    if figure is None:
        raise ClipbiasError("nothing was fitted in these studies; run them with --config.sections=replacement.")
    for study in studies:
        if study.replacement is not None:
            sentences = [method.sentence for method in study.replacement.methods]
            common.tell(*(f"{dataset_name(study.dataset.name)}: {sentence}" for sentence in sentences))
    save_picture(figure)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
