"""Sizes of a synthetic study, and arrays drawn for it."""

import dataclasses

import numpy as np

from clipbias.explain.results import Average


@dataclasses.dataclass
class Draws:
    draw: np.random.Generator
    layers: int = 3
    heads: int = 2
    grid: int = 3
    image_size: int = 24
    vision_prompts: int = 2
    text_prompts: int = 2
    tokens: int = 9
    classes: int = 4
    images: int = 50
    twins: bool = False

    @property
    def patches(self):
        return self.grid**2

    def average(self, mean, relative_error=0.06):
        mean = np.asarray(mean, np.float32)
        return Average(mean, (relative_error * np.abs(mean)).astype(np.float32))

    def steps(self, *shape):
        return self.draw.integers(0, 256, (*shape, self.patches), dtype=np.uint8)

    def reals(self, *shape):
        return self.draw.uniform(0.01, 0.2, shape).astype(np.float32)

    def patch_row(self, centre=0.5):
        rows, columns = np.mgrid[: self.grid, : self.grid] / max(1, self.grid - 1) - centre
        row = np.exp(-4 * (rows**2 + columns**2)).ravel() * self.draw.lognormal(0, 0.25, self.patches)
        return row / row.sum()

    def pictures(self, count):
        rows, columns = np.mgrid[: self.image_size, : self.image_size] / self.image_size - 0.5
        made = []
        for _ in range(count):
            centre = self.draw.uniform(-0.2, 0.2, 2)
            disc = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) < 0.07
            ground = self.draw.integers(20, 110, 3)
            ink = self.draw.integers(130, 250, 3)
            noise = self.draw.normal(0, 9, (self.image_size, self.image_size, 1))
            made.append(np.clip(np.where(disc[..., None], ink, ground) + noise, 0, 255).astype(np.uint8))
        return made

    def maps(self, *shape):
        rows, columns = np.mgrid[: self.image_size, : self.image_size] / self.image_size - 0.5
        made = np.empty((*shape, self.image_size, self.image_size), np.float32)
        for index in np.ndindex(*shape):
            a, b = self.draw.uniform(-0.3, 0.3, 2)
            spot = np.exp(-8 * ((rows - a) ** 2 + (columns - b) ** 2))
            made[index] = (spot - spot.min()) / (spot.max() - spot.min())
        return made

    def logits(self, strengths, labels):
        """`[n, K, C]` under which the true class is ahead by the strengths `[K]`, beside noise of the images.

        All models share most of that noise: else two seeds would differ by so much that they show no gain.
        """
        noise = np.random.default_rng(len(labels)).normal(size=(len(labels), 1, self.classes))
        logits = noise + np.zeros((1, len(strengths), 1))
        logits[np.arange(len(labels)), :, labels] += np.asarray(strengths) - 0.5
        return logits + 0.3 * self.draw.normal(size=logits.shape)
