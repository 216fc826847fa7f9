"""The vocabulary's words that lie nearest to learned text prompts.

A *context* (`text_context`) stands where token embeddings stand, so its words are the rows of the token-embedding
table, by Euclidean distance, as CoOp's authors look at theirs (Zhou et al. 2022, Table 4).

A *deeper prompt* replaces hidden states, and a token embedding is no hidden state. Row `i - 1` of `text_prompts`
replaces the context tokens at the input of block `i`; what the frozen model itself would have there is the state of a
word in that place. So its words are those of the texts "SOS, the prompt text's own words up to the prompt's place, w"
for every token `w` of the vocabulary: the state of `w` at the input of block `i`, without any adaptation. Two things
follow. Causality makes it exact: what comes after `w` cannot change it. And the words before it are frozen ones, not
the learned prompts that stand there in the tuned model; a prompt is compared with what CLIP says, not with what the
tuned model says.

Nearest is not near: every result carries the mean distance over the whole vocabulary beside it. A prompt that is much
shorter than the states is nearest to the shortest of them, whatever its direction.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from clipbias.clip import Clip, TextTokens, encode_text
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.tokenizer import Tokenizer
from clipbias.errors import ClipbiasError
from clipbias.tuning import Task

VECTORS = 1024  # contexts that are compared at a time
ROWS = 4096  # rows of the embedding table that are


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest words of `n` vectors.

    Attributes:
      ids: `[n, k]` token ids, the nearest first; equally near ones by id.
      distances: `[n, k]` Euclidean distances, float64.
      mean_distance: `[n]`, to the whole vocabulary.
    """

    ids: np.ndarray
    distances: np.ndarray
    mean_distance: np.ndarray


class Search:
    """The nearest rows of a table that comes in pieces, for some vectors."""

    def __init__(self, vectors: np.ndarray, count: int) -> None:
        """Looks for the `count` nearest rows, fewer where the table is smaller, of each of the vectors `[n, D]`."""
        self._vectors = np.asarray(vectors, np.float64)
        self._count = count
        self._ids = np.empty((len(vectors), 0), int)
        self._distances = np.empty((len(vectors), 0))
        self._total = np.zeros(len(vectors))
        self._seen = 0

    def add(self, rows: np.ndarray) -> None:
        """Takes the next rows of the table, `[v, D]`."""
        rows = np.asarray(rows, np.float64)
        distances = euclidean_distances(
            self._vectors, rows
        )  # from products: fast, and exact to a rounding error's root
        near = distances.argsort(axis=1, kind="stable")[:, : self._count]
        # From differences, so that a vector's own row is at distance 0.
        exact = np.linalg.norm(rows[near] - self._vectors[:, None], axis=-1)
        all_ids = np.hstack([self._ids, self._seen + near])
        all_distances = np.hstack([self._distances, exact])
        order = np.lexsort((all_ids, all_distances))[:, : self._count]
        self._ids = np.take_along_axis(all_ids, order, 1)
        self._distances = np.take_along_axis(all_distances, order, 1)
        self._total = self._total + distances.sum(1)
        self._seen += len(rows)

    def result(self) -> Nearest:
        """What was found so far."""
        return Nearest(self._ids, self._distances, self._total / max(self._seen, 1))


def context_words(context: np.ndarray, token_embedding: np.ndarray, count: int) -> Nearest:
    """The words nearest to contexts `[n, D]` in the embedding table `[vocabulary, D]`."""
    parts = []
    for first in range(0, len(context), VECTORS):  # a context for each of many classes is many vectors
        search = Search(context[first : first + VECTORS], count)
        for start in range(0, len(token_embedding), ROWS):
            search.add(token_embedding[start : start + ROWS])
        parts.append(search.result())
    return Nearest(
        ids=np.concatenate([part.ids for part in parts]),
        distances=np.concatenate([part.distances for part in parts]),
        mean_distance=np.concatenate([part.mean_distance for part in parts]),
    )


@functools.partial(jax.jit, static_argnames="config")
def word_states(params: Params, config: ClipConfig, ids: jax.Array) -> jax.Array:
    """The last token's state at the input of every block, of texts without adaptation: ids `[v, N]` to `[L, v, D]`."""
    last = jnp.full(ids.shape[0], ids.shape[1] - 1)
    tokens = TextTokens(ids, jnp.full(ids.shape, -1), last, None if config.text.causal else last)
    return encode_text(params, config, tokens, observe=lambda view: view.tokens[:, -1])[1]


def prompt_prefixes(task: Task, prompts: int) -> list[np.ndarray]:
    """The ids before each of `T` context tokens, from SOS on; the same for all classes.

    Raises:
      ClipbiasError: class names stand between or before the context tokens.
    """
    ids = np.asarray(task.tokens.ids)
    rows = np.asarray(task.tokens.context_rows)
    prefixes = []
    for prompt in range(prompts):
        at = np.argmax(rows == prompt, axis=1)
        if not (rows[np.arange(len(rows)), at] == prompt).all() or (ids[:, : at[0]] != ids[0, : at[0]]).any():
            raise ClipbiasError(
                "the words of deeper prompts are those in the prompts' place, which must be the same for all classes; "
                "they cannot be told for prompts after a class name."
            )
        prefixes.append(ids[0, : at[0]])
    return prefixes


def place_words(
    clip: Clip, prefix: np.ndarray, prompts: Sequence[np.ndarray], count: int, *, chunk: int
) -> list[list[Nearest]]:
    """The words nearest to deeper prompts of one place, in the space of the states that they replace.

    One pass of the text tower over the whole vocabulary, `chunk` words at a time, serves all prompts of the place.

    Args:
      clip: the frozen model.
      prefix: the ids before the place.
      prompts: of each adapter, `[depth - 1, D]`: its prompts at blocks 1 … depth - 1. Depths may differ.
      count: nearest words per prompt.
      chunk: words per pass.

    Returns:
      For each adapter a `Nearest` of one vector for each of its blocks.
    """
    config = clip.config
    params = jax.device_put({"text": clip.params["text"]})
    size = config.text.vocabulary_size
    depth = max(len(layers) for layers in prompts)
    here = [[i for i, layers in enumerate(prompts) if layer < len(layers)] for layer in range(depth)]
    searches = [Search(np.stack([prompts[i][layer] for i in who]), count) for layer, who in enumerate(here)]
    for start in range(0, size, chunk):
        # The last chunk is padded, so that one compiled program serves all.
        tokens = np.minimum(np.arange(start, start + chunk), size - 1)
        texts = np.column_stack([np.tile(prefix, (chunk, 1)), tokens]).astype(np.int32)
        states = np.asarray(word_states(params, config, texts))[1 : 1 + depth, : size - start]
        for search, state in zip(searches, states, strict=True):
            search.add(state)
    results = [search.result() for search in searches]

    def row(layer: int, index: int) -> Nearest:
        place = here[layer].index(index)
        near = results[layer]
        rows = slice(place, place + 1)
        return Nearest(near.ids[rows], near.distances[rows], near.mean_distance[rows])

    return [[row(layer, i) for layer in range(len(layers))] for i, layers in enumerate(prompts)]


def readable_token(tokenizer: Tokenizer, token: int) -> str:
    """A token as readers know it: its word, with a hyphen after it where it is only a word's beginning or middle."""
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if token in tokenizer.all_special_ids:
        return str(piece)
    text = tokenizer.decode([int(token)]).strip()
    return text if piece.endswith("</w>") else f"{text}-"
