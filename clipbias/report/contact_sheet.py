"""One picture of a dataset's few-shot picks: labels, prompts and training crops, to see that all is as meant."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipbias.data import transforms
from clipbias.data.dataset import Dataset, Split
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

    Args:
      dataset: Any dataset with training images.
      shots: Images per class of the draw.
      seed: The draw's seed, which also keys the crops.
    """
    train = dataset.split("train")
    indices, _ = few_shot(train, None, shots=shots, seed=seed)
    drawn = train.subset(indices)
    labels = list(dict.fromkeys(drawn.labels.tolist()))[:CLASSES]
    columns = min(shots, PICKS) + CROPS
    width = max(columns * (TILE + GAP) + 3 * GAP, 480)
    sheet = Image.new("RGB", (width, HEADER + len(labels) * (TILE + CAPTION + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    counts = f"{counted(len(dataset.class_names), 'class')}, {counted(shots, 'shot')}"
    title = f"{dataset.name}: {counts}, seed {seed}, {dataset.template!r}"
    draw.text((GAP, GAP), title, fill=INK, font=font(14))
    note = f"right: {CROPS} training crops of the first pick"
    draw.text((GAP, GAP + 18), note, fill=FAINT, font=font(11))
    top = HEADER
    for label in labels:
        of_label = np.flatnonzero(drawn.labels == label).tolist()
        prompt = printable(dataset.template.replace("{}", dataset.class_names[label].replace("_", " ")))
        draw.text((GAP, top), f"{label}  {prompt}", fill=INK, font=font(12))
        _row(sheet, top + CAPTION, _tiles(drawn, of_label, seed), min(shots, PICKS))
        top += TILE + CAPTION + GAP
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's, which has the letters of most languages; Pillow's own lacks those with accents."""
    import matplotlib  # it takes a while

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _tiles(drawn: Split, indices: Sequence[int], seed: int) -> list[list[np.ndarray]]:
    images = [drawn.image(index) for index in indices[:PICKS]]
    picks = [transforms.test_image(image, transforms.Resizing(TILE)) for image in images]
    rngs = [augmentation_rng(seed, epoch, indices[0]) for epoch in range(CROPS)]
    return [picks, [transforms.train_image(images[0], rng, transforms.Resizing(TILE)) for rng in rngs]]


def _row(sheet: Image.Image, top: int, tiles: list[list[np.ndarray]], first_columns: int) -> None:
    for group, start in zip(tiles, (0, first_columns), strict=True):
        for column, tile in enumerate(group, start=start):
            left = GAP + column * (TILE + GAP) + (2 * GAP if start else 0)
            sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top))
