"""Captions: how a scene is put into words.

Most captions name only the noun, bare or in a prompt template, so that prompts work; the rest describe the picture.
One batch uses one template for all its nouns: two pictures of a seven then have the same caption, and count as matches
of each other, where "seven" and "a photo of a seven." would be pulled apart.
"""

import string
from functools import cache

import numpy as np

from tools.demo import concepts
from tools.demo.outlines import shapes
from tools.demo.painting import COLOURS
from tools.demo.patterns import PATTERNS
from tools.demo.pictures import things
from tools.demo.scenes import DIGITS, Scene
from tools.demo.wardrobe import wardrobe

TEMPLATES = (
    "{}",
    "a {}",
    "a {}.",
    "a photo of a {}.",
    "a photo of a {}",
    "a photo of the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "a blurry photo of a {}.",
    "a small photo of a {}.",
    "a bad photo of a {}.",
    "an emoji of a {}.",
    "this is a {}.",
    "this is a photo of a {}.",
)
# The bare noun and CLIP's own template are the ones that matter most.
TEMPLATE_WEIGHTS = np.array([6, 2, 1, 6, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1], float) / 29
PREFIXES = ("", "", "a photo of ", "a picture of ", "an image of ", "this is ")


@cache
def names() -> tuple[str, ...]:
    """Every noun that a scene of one object may have, in a fixed order."""
    letters = tuple(f"letter {letter}" for letter in string.ascii_lowercase)
    return tuple(sorted({*DIGITS, *letters, *shapes(), *things(), *wardrobe(), *PATTERNS, *concepts.nouns()}))


def description(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence about this very picture."""
    phrase = scene.phrases[rng.integers(len(scene.phrases))]
    return PREFIXES[rng.integers(len(PREFIXES))] + phrase + ("." if rng.random() < 0.5 else "")


def caption_words() -> dict[str, int]:
    """The words that captions use, with a weight that says how much each deserves a token of its own."""
    words: dict[str, int] = {}
    frames = " ".join((*TEMPLATES, *PREFIXES)).replace("{}", " ").replace(".", " ")
    for word in frames.split():
        words[word] = 1000
    extra = "the digit number letter capital small large handwritten printed texture pattern surface drawing group in"
    for word in (*extra.split(), "left", "of", "above", "and", "is", "picture", "two", "three", "four", *COLOURS):
        words[word] = 1000
    tested = {*DIGITS, *wardrobe(), *concepts.CLASSES}
    for name in names():
        for word in name.replace("-", " ").split():
            words[word] = max(words.get(word, 0), 2000 if name in tested else 500)
            words[f"{word}s"] = max(words.get(f"{word}s", 0), 100)
    return words
