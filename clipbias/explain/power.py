"""Which differences a study could have seen, and how many images and seeds a smaller one needs.

A difference can be seen where a study like this has a chance of 80 % that its 95 % interval excludes 0: from 2.8
standard errors on. The error of a mean difference over `S` seeds and `n` images that all seeds share is

    images / n + seeds / S + rest / (S n)

with the variances between images, between seeds, and of what is left.
"""

import dataclasses
import math

import numpy as np

from clipbias.sentences import counted

# Standard errors: the interval's half width, and how far above it 80 % of the estimates lie.
DETECTABLE = 1.959964 + 0.841621


@dataclasses.dataclass(frozen=True)
class Spread:
    """Variances of paired differences, in squared units of the outcome.

    Attributes:
      images: between images. With one seed it holds the rest, too.
      seeds: between seeds; `None` where there is one.
      rest: of an image under a seed beyond both.
    """

    images: float
    seeds: float | None
    rest: float

    def error(self, images: int, seeds: int) -> float:
        """The standard error of the mean over so many images and seeds."""
        return math.sqrt(self.images / images + (self.seeds or 0.0) / seeds + self.rest / (images * seeds))


@dataclasses.dataclass(frozen=True)
class Power:
    """What could have been seen.

    Attributes:
      images, seeds: as they were.
      smallest: the smallest difference that could have been seen with these.
      difference: one of interest.
      images_needed: for it with the same seeds, or `None` where no number of images is enough.
      seeds_needed: for it with the same images, or `None` where no number of seeds is enough, or there is one seed, of
        which it cannot be said.
    """

    images: int
    seeds: int
    smallest: float
    difference: float
    images_needed: int | None
    seeds_needed: int | None

    def sentence(self, unit: str = "points") -> str:
        """All of it in words."""
        digits = 1 if self.smallest < 10 else 0
        with_these = f"{counted(self.images, 'image')} and {counted(self.seeds, 'seed')}"
        seen = f"With {with_these}, a difference of {self.smallest:.{digits}f} {unit} or more"
        if self.smallest <= self.difference:
            return f"{seen} could have been seen."
        smaller = f"{self.difference:g} {unit if self.difference != 1 else unit.removesuffix('s')}"
        ways = []
        if self.images_needed is not None:
            seeds = "this seed" if self.seeds == 1 else "these seeds"
            ways.append(f"{counted(self.images_needed, 'image')} with {seeds}")
        if self.seeds_needed is not None:
            ways.append(f"{counted(self.seeds_needed, 'seed')} with these images")
        needs = " or ".join(ways) if ways else "more of both: neither alone is enough"
        return f"{seen} could have been seen; {smaller} would need {needs}."


def spread(differences: np.ndarray) -> Spread:
    """Of differences `[S, n]` of `S` seeds on the same `n` images: a two-way analysis of variance."""
    values = np.asarray(differences, np.float64)
    seeds, n = values.shape
    if seeds == 1:
        return Spread(float(values[0].var(ddof=1)), None, 0.0)
    by_seed = values.mean(1)
    by_image = values.mean(0)
    mean = values.mean()
    rest = values - by_seed[:, None] - by_image + mean
    squares = float((rest**2).sum() / ((seeds - 1) * (n - 1)))
    between_seeds = float(n * by_seed.var(ddof=1))
    between_images = float(seeds * by_image.var(ddof=1))
    return Spread(max(0.0, (between_images - squares) / seeds), max(0.0, (between_seeds - squares) / n), squares)


def power(variances: Spread, images: int, seeds: int, *, difference: float = 1.0) -> Power:
    """What so many images and seeds could see, and what `difference` needs."""
    error = (difference / DETECTABLE) ** 2  # squared, that detects it
    smallest = DETECTABLE * variances.error(images, seeds)
    seeds_alone = error - (variances.seeds or 0.0) / seeds
    more_images = None if seeds_alone <= 0 else math.ceil((variances.images + variances.rest / seeds) / seeds_alone)
    images_alone = error - variances.images / images
    more_seeds = None
    if variances.seeds is not None and images_alone > 0:
        more_seeds = math.ceil((variances.seeds + variances.rest / images) / images_alone)
    return Power(images, seeds, smallest, difference, more_images, more_seeds)
