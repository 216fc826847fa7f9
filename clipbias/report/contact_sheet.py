"""Contact sheet of a dataset's few-shot picks: labels, prompts and training crops."""

import numpy as np

from clipbias.data import transforms
from clipbias.data.dataset import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.data.pipeline import augmentation_rng
from clipbias.report import style
from clipbias.report.overlay import show_picture
from clipbias.sentences import counted
from clipbias.terminal import printable

TILE = 96  # pixels
CLASSES = 12  # at most
PICKS = 6  # at most, of each class
CROPS = 4  # of the first pick, in the first epochs


def contact_sheet(dataset: Dataset, *, shots: int, seed: int) -> style.Figure:
    """Draws a row per class: its first picks as evaluation sees them, then training crops of the first pick.

    Picks and crops are those of a run with `shots` images per class and this seed.
    """
    train = dataset.split("train")
    # The draw of a run: what the sheet shows is what training sees.
    drawn = train.subset(few_shot(train, None, shots=shots, seed=seed)[0])
    labels = list(dict.fromkeys(drawn.labels.tolist()))[:CLASSES]
    picks = min(shots, PICKS)
    counts = f"{counted(len(dataset.class_names), 'class')}, {counted(shots, 'shot')}"
    with style.styled():
        figure = style.new_figure(max(picks + CROPS, 6), 0.6 + 1.2 * len(labels))
        figure.suptitle(
            f"{printable(dataset.name)}: {counts}, seed {seed}, {printable(dataset.template)!r}\n"
            f"right: {CROPS} training crops of the first pick",
            fontsize=9,
        )
        for row, label in zip(figure.subplots(len(labels), picks + CROPS, squeeze=False), labels, strict=True):
            of_label = np.flatnonzero(drawn.labels == label).tolist()
            images = [drawn.image(index) for index in of_label[:PICKS]]
            tiles = dict(enumerate(transforms.test_image(image, transforms.Resizing(TILE)) for image in images))
            for epoch in range(CROPS):
                # The generator of training, so that the crops are those that a run sees.
                rng = augmentation_rng(seed, epoch, of_label[0])
                tiles[picks + epoch] = transforms.train_image(images[0], rng, transforms.Resizing(TILE))
            for place, axes in enumerate(row):
                axes.set_axis_off()
                if place in tiles:
                    show_picture(axes, tiles[place])
            # The words that zero-shot CLIP reads for the class: a wrong name is seen here.
            prompt = dataset.template.replace("{}", dataset.class_names[label].replace("_", " "))
            row[0].set_title(f"{label}  {printable(prompt)}", loc="left", fontsize=8, fontweight="normal")
    return figure
