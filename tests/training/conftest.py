"""A tiny model and a tiny image set that training tests share."""

import io

import numpy as np
import pytest
from PIL import Image

from clipbias.data import Dataset, Split, protocols
from clipbias.training.loop import Run
from clipbias.tuning.recipe import Recipe

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def colour_split(count: int, seed: int) -> Split:
    """`count` noisy 20 x 24 PNGs of each colour."""
    rng = np.random.default_rng(seed)
    encoded, labels = [], []
    for label, colour in enumerate(COLOURS.values()):
        for _ in range(count):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
            labels.append(label)
    return Split(tuple(f"{seed}/{i}.png" for i in range(len(labels))), np.array(labels), encoded.__getitem__)


def few_shot_runs(dataset: Dataset, seeds: tuple[int, ...], shots: int = 4) -> list[Run]:
    """A run for each seed, on its draw."""
    draws = [protocols.few_shot(dataset, shots=shots, seed=seed) for seed in seeds]
    return [Run(draw.source.split("train"), seed) for draw, seed in zip(draws, seeds, strict=True)]


@pytest.fixture(scope="session")
def colours() -> Dataset:
    splits = {"train": colour_split(6, 0), "val": colour_split(2, 1), "test": colour_split(5, 2)}
    return Dataset("colours", tuple(COLOURS), "a photo of a {}.", splits)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        learning_rate=0.05,
        epochs=3,
        warmup_epochs=1,
        warmup_learning_rate=1e-3,
        batch_size=8,
        momentum=0.9,
        weight_decay=5e-4,
    )
