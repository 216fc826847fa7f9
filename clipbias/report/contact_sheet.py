"""One picture of a dataset's few-shot picks: labels, prompts and training crops, to see that all is as meant."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipbias.data import transforms
from clipbias.data.dataset import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.data.pipeline import augmentation_rng
from clipbias.sentences import counted
from clipbias.terminal import printable

TILE = 96
GAP = 4
HEADER = 42
CAPTION = 18
# What is shown at most: classes, picks of each, and training crops of the first pick, those of the first epochs.
CLASSES = 12
PICKS = 6
CROPS = 4
INK = (30, 30, 30)
PAPER = (255, 255, 255)
FAINT = (110, 110, 110)


def contact_sheet(dataset: Dataset, *, shots: int, seed: int) -> Image.Image:
    """Draws a row per class: its first picks as evaluation sees them, then training crops of the first pick.

    The few-shot split of `shots` images per class and the crops are those of a run with this seed.
    """
    train = dataset.split("train")
    indices, _ = few_shot(train, None, shots=shots, seed=seed)
    drawn = train.subset(indices)
    labels = list(dict.fromkeys(drawn.labels.tolist()))[:CLASSES]
    width = max((min(shots, PICKS) + CROPS) * (TILE + GAP) + 3 * GAP, 480)
    sheet = Image.new("RGB", (width, HEADER + len(labels) * (TILE + CAPTION + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    counts = f"{counted(len(dataset.class_names), 'class')}, {counted(shots, 'shot')}"
    title = f"{dataset.name}: {counts}, seed {seed}, {dataset.template!r}"
    draw.text((GAP, GAP), title, fill=INK, font=font(14))
    draw.text((GAP, GAP + 18), f"right: {CROPS} training crops of the first pick", fill=FAINT, font=font(11))
    for place, label in enumerate(labels):
        top = HEADER + place * (TILE + CAPTION + GAP)
        prompt = printable(dataset.template.replace("{}", dataset.class_names[label].replace("_", " ")))
        draw.text((GAP, top), f"{label}  {prompt}", fill=INK, font=font(12))
        of_label = np.flatnonzero(drawn.labels == label).tolist()
        images = [drawn.image(index) for index in of_label[:PICKS]]
        tiles = [transforms.test_image(image, transforms.Resizing(TILE)) for image in images]
        lefts = [GAP + column * (TILE + GAP) for column in range(len(tiles))]
        for epoch in range(CROPS):
            rng = augmentation_rng(seed, epoch, of_label[0])
            tiles.append(transforms.train_image(images[0], rng, transforms.Resizing(TILE)))
            lefts.append(3 * GAP + (min(shots, PICKS) + epoch) * (TILE + GAP))
        for tile, left in zip(tiles, lefts, strict=True):
            sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top + CAPTION))
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's, which has the letters of most languages; Pillow's own lacks those with accents."""
    import matplotlib  # it takes a while

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
