"""Token types and labels of texts, and the vocabulary's words nearest to learned prompts (Zhou et al. 2022).

A *context* (`text_context`) takes the place of token embeddings, so its words are rows of the embedding table, by
Euclidean distance. Deeper prompts replace hidden states, which no word has.

The nearest word may be far: each result has the mean distance to the whole vocabulary beside it. A prompt that is much
shorter than the embeddings is nearest to the shortest of them, whatever its direction.
"""

import dataclasses

import numpy as np

from clipbias.analysis.model import Model, additions
from clipbias.analysis.results import TEXT_TYPES, Missing
from clipbias.analysis.sections import Section
from clipbias.analysis.study import Computation, Study
from clipbias.clip.tokenizer import Tokenizer, encode
from clipbias.tuning import Task
from clipbias.tuning.prompts import name_tokens


@dataclasses.dataclass(frozen=True)
class PromptWords:
    """The vocabulary's tokens nearest to a learned text prompt, nearest first."""

    prompt: int
    class_name: str | None  # of a context of one class
    words: tuple[str, ...]  # readable tokens
    distances: tuple[float, ...]  # Euclidean
    mean_distance: float  # to the whole vocabulary


@dataclasses.dataclass(frozen=True)
class ModelWords:
    prompts: tuple[PromptWords, ...]


SOS, PROMPT, WORDS, CATEGORY, DOT, EOS = range(len(TEXT_TYPES))
PAD = len(TEXT_TYPES)
_BYTES = 4  # at most, of a character
_BROKEN = "\ufffd"  # decodes from a part of a character's bytes
NEAREST = 5  # words of each prompt


def text_types(task: Task) -> np.ndarray:
    """Returns the type of every text token, an index into `TEXT_TYPES`, `PAD` after EOS: int32 `[n · C, N]`.

    Prompts are learned, words are of the frozen template, the category is the class name, "eos" is the position read.
    """
    text = task.prompt
    tokenizer = task.clip.tokenizer
    names = task.class_names
    lengths = [len(ids) for ids in name_tokens(task.clip, names, text)]
    ends = np.asarray(task.tokens.end)
    pooled = np.asarray(task.tokens.eos)
    first = task.clip.config.text.first_word
    has_dots = bool(encode(tokenizer, ["."])[0])
    types = np.full(task.tokens.ids.shape, WORDS, np.int32)
    # Types are assigned from the weakest to the strongest: later assignments overwrite earlier ones.
    if additions(task).text_context is not None:
        types[np.asarray(task.tokens.context_rows) >= 0] = PROMPT
    for i, row in enumerate(types):
        template = text.templates[i // len(names)]
        before = len(encode(tokenizer, [template.partition("{}")[0].strip()])[0])
        # A name may stand within the context: then the context's tokens before it count.
        if (place := text.before[i // len(names)]) < text.context_tokens:
            before = place
        end = int(ends[i])
        row[:first] = SOS
        # A name that does not fit into the context is cut off, as the tokenizer cuts it.
        row[first + before : min(first + before + lengths[i % len(names)], end)] = CATEGORY
        if template.endswith(".") and end - 1 > before and has_dots:
            row[end - 1] = DOT
        row[end:] = PAD
        row[pooled[i]] = EOS
    return types


def index_types(types: np.ndarray) -> list[str]:
    """Returns the type's name at every token index, "" where texts `[C, N]` differ in it or all have ended."""
    return [(*TEXT_TYPES, "")[column[0]] if (column == column[0]).all() else "" for column in np.asarray(types).T]


def prompt_text(task: Task) -> str:
    """Returns the text around the class name, with `{}` in its place, as it is before training."""
    return task.method.text(task.template, task.clip).templates[0]


def token_labels(task: Task, index: int) -> list[str]:
    """Returns the tokens of one text without EOS, as readable pieces, "[1]" if learned, "ü 1/2" if half a letter."""
    tokenizer = task.clip.tokenizer
    end = int(task.tokens.end[index])
    rows = task.tokens.context_rows[index]
    is_learned = additions(task).text_context is not None
    words = [int(token) for token in task.tokens.ids[index, :end]]
    labels = ["SOS" for _ in range(task.clip.config.text.first_word)]
    while (position := len(labels)) < end:
        if is_learned and rows[position] >= 0:
            labels.append(f"[{rows[position] + 1}]")
            continue
        # A token may hold some bytes of a character: more tokens are decoded together until they make whole ones.
        for count in range(1, _BYTES + 1):
            piece = tokenizer.decode(words[position : position + count]).strip()
            if _BROKEN not in piece:
                break
        else:  # no text
            count, piece = 1, tokenizer.decode([words[position]]).strip()
        labels += [f"{piece} {number}/{count}" for number in range(1, count + 1)] if count > 1 else [piece]
    return labels


def context_words(
    context: np.ndarray, token_embedding: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the `count` words nearest to contexts `[n, D]` in the embedding table `[vocabulary, D]`, both float32.

    Returns token ids `[n, count]`, the nearest first, their Euclidean distances in float64, and the mean distance `[n]`
    to the whole vocabulary.
    """
    # In chunks: distances from many class contexts to a whole vocabulary may exceed the memory.
    from sklearn.metrics import pairwise_distances_chunked

    def nearest(distances: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        return distances.argsort(axis=1, kind="stable")[:, :count], distances.mean(axis=1, dtype=np.float64)

    parts = pairwise_distances_chunked(context, token_embedding, reduce_func=nearest)
    ids, mean_distance = (np.concatenate(each) for each in zip(*parts, strict=True))
    # The chunks compute `|x|² + |y|² − 2 x·y`, which rounds. Differences put a vector's own row at distance 0.
    distances = np.linalg.norm(token_embedding[ids].astype(np.float64) - context[:, None], axis=-1)
    # Exact distances may reorder near ties of the rounded ones; ids break exact ties, so results are reproducible.
    order = np.lexsort((ids, distances))
    return np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1), mean_distance


def readable_token(tokenizer: Tokenizer, token: int) -> str:
    """Returns a token's text, with a hyphen behind a word's beginning or middle."""
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if token in tokenizer.all_special_ids:
        return str(piece)
    text = tokenizer.decode([int(token)]).strip()
    return text if piece.endswith("</w>") else f"{text}-"


def compute_words(study: Study) -> Computation[dict[str, ModelWords | Missing]]:
    words = {model.key: _prompt_words(study, model) for model in study.tuned}
    yield ()  # a section is a generator, and this one reads no image
    return {
        key: ModelWords(each) if each else Missing("There are no learned text prompts.") for key, each in words.items()
    }


PROMPT_WORDS = Section(
    name="words", title="Nearest words", result=dict[str, ModelWords | Missing], compute=compute_words
)


def _prompt_words(study: Study, model: Model) -> tuple[PromptWords, ...]:
    context = model.task.method.adapt(model.learnables).text_context
    if context is None or not context.size:
        return ()
    count = context.shape[-2]
    rows = np.asarray(context).reshape(-1, context.shape[-1])
    table = np.asarray(study.clip.params["text"]["token_embedding"])
    # Contexts of all classes in one search, which reads the table once.
    ids, distances, mean_distances = context_words(rows, table, NEAREST)
    # Contexts may also belong to templates, and then to no class.
    by_class = context.ndim == 3 and len(context) == len(model.task.texts)
    names = model.task.class_names
    return tuple(
        PromptWords(
            prompt=row % count,
            class_name=names[row // count % len(names)] if by_class else None,
            words=tuple(readable_token(study.clip.tokenizer, token) for token in tokens),
            distances=tuple(distances[row].tolist()),
            mean_distance=float(mean_distances[row]),
        )
        for row, tokens in enumerate(ids.tolist())
    )
