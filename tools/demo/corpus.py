"""Scenes with captions: how a scene is put into words, the scenes on disk, and the batches drawn from them.

Most captions name only the noun, bare or in a prompt template, so that prompts work; the rest describe the picture.
One batch uses one template for all its nouns: two pictures of a seven then have the same caption, and count as matches
of each other, where "seven" and "a photo of a seven." would be pulled apart.

Scenes are drawn once, in chunks that are written whole, so that an interrupted run draws only what is missing. Batches
are a function of (seed, step): a continued run sees what an uninterrupted one would have seen.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipbias.io import atomic_path
from tools.demo import concepts, scenes
from tools.demo.drawings import shapes, things, wardrobe
from tools.demo.painting import COLOURS
from tools.demo.patterns import PATTERNS
from tools.demo.scenes import DIGITS, Scene

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
CHUNK = 2000
PHRASES = 2  # descriptions kept of each scene
CAPTION_LENGTH = 21  # tokens of the longest caption, start and end included

Tokenize = Callable[[list[str]], np.ndarray]


@functools.cache
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


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Drawn scenes with their captions as token ids.

    Attributes:
      images: uint8 `[n, 48, 48, 3]`.
      kinds: int32 `[n]`: index into `scenes.KINDS`.
      names: int32 `[n]`: index into `names()`, -1 where a scene has more than one object.
      phrases: int32 `[n, PHRASES, N]`: descriptions.
      nouns: int32 `[templates, names, N]`: every noun in every template.
    """

    images: np.ndarray
    kinds: np.ndarray
    names: np.ndarray
    phrases: np.ndarray
    nouns: np.ndarray


def draw_chunk(folder: Path, seed: int, chunk: int, size: int) -> Path:
    """Draws `size` scenes into one file, unless that file is there."""
    path = folder / f"scenes-{seed}-{chunk:05d}-{size}.npz"
    if path.exists():
        return path
    rng = np.random.default_rng((seed, chunk, 1))
    kinds = list(scenes.KINDS)
    index = {name: i for i, name in enumerate(names())}
    drawn = [scenes.scene(seed, chunk * size + i) for i in range(size)]
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            images=np.stack([scene.image for scene in drawn]),
            kinds=np.array([kinds.index(scene.kind) for scene in drawn], np.int32),
            names=np.array([index.get(scene.name, -1) for scene in drawn], np.int32),
            phrases=np.array([[description(scene, rng) for _ in range(PHRASES)] for scene in drawn]),
        )
    return path


def pad(ids: np.ndarray) -> np.ndarray:
    """`[n, N]` to `[n, CAPTION_LENGTH]`; texts of a whole context stay."""
    return np.pad(ids, ((0, 0), (0, max(0, CAPTION_LENGTH - ids.shape[1]))))


def load(folder: Path, *, seed: int, count: int, tokenize: Tokenize, workers: int = 2) -> Corpus:
    """Draws what is missing of `count` scenes, with `workers` processes, and loads them all."""
    folder.mkdir(parents=True, exist_ok=True)
    chunk = min(CHUNK, count)
    draw = functools.partial(draw_chunk, folder, seed, size=chunk)
    chunks = range(-(-count // chunk))
    if workers < 2:
        paths = [draw(number) for number in chunks]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            paths = list(pool.map(draw, chunks))
    parts: dict[str, list[np.ndarray]] = {"images": [], "kinds": [], "names": [], "phrases": []}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            for key, values in parts.items():
                values.append(file[key])
    joined = {key: np.concatenate(values)[:count] for key, values in parts.items()}
    texts, inverse = np.unique(joined["phrases"], return_inverse=True)
    ids = pad(tokenize(texts.tolist()))[inverse.reshape(joined["phrases"].shape)]
    nouns = [pad(tokenize([template.format(name) for name in names()])) for template in TEMPLATES]
    return Corpus(joined["images"], joined["kinds"], joined["names"], ids, np.stack(nouns))


def batch(corpus: Corpus, *, seed: int, step: int, size: int, described: float = 0.3) -> dict[str, np.ndarray]:
    """The batch of one step.

    Half of the batch is of one kind of scene, so that telling digits from houses is not enough.

    Args:
      described: the share of scenes captioned by a description in place of their noun.

    Returns:
      `images` uint8 `[B, 48, 48, 3]`, `ids` int32 `[B, N]`.
    """
    rng = np.random.default_rng((seed, step, 2))
    shares = np.array([share for share, _ in scenes.KINDS.values()])
    kind = rng.choice(len(shares), p=shares / shares.sum())
    same_kind = np.flatnonzero(corpus.kinds == kind)
    picks = np.concatenate(
        [
            rng.choice(same_kind, size // 2) if len(same_kind) else rng.integers(len(corpus.kinds), size=size // 2),
            rng.integers(len(corpus.kinds), size=size - size // 2),
        ]
    )
    template = rng.choice(len(TEMPLATES), p=TEMPLATE_WEIGHTS)
    names = corpus.names[picks]
    describe = (names < 0) | (rng.random(size) < described)
    phrases = corpus.phrases[picks, rng.integers(PHRASES, size=size)]
    ids = np.where(describe[:, None], phrases, corpus.nouns[template, np.maximum(names, 0)])
    return {"images": corpus.images[picks], "ids": ids.astype(np.int32)}
