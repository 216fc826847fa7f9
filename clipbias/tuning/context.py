"""Initial values of learned contexts and linear maps, and the prompt text around a context."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip
from clipbias.clip.tokenizer import encode
from clipbias.tuning.prompt_text import PromptText

POSITIONS = ("end", "middle", "front")  # of a class name among its context
STANDARD_DEVIATION = 0.02  # of prompt tokens with random initial values


def random_prompts(rng: jax.Array, *shape: int) -> jax.Array:
    """Prompt tokens at N(0, 0.02)."""
    return STANDARD_DEVIATION * jax.random.normal(rng, shape)


def initial_linear(rng: jax.Array, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Kernel `[inputs, outputs]` and bias `[outputs]` initialised as in torch.nn.Linear: uniform within ±1/√inputs."""
    kernel, bias = jax.random.split(rng)
    bound = inputs**-0.5
    return (
        jax.random.uniform(kernel, (inputs, outputs), minval=-bound, maxval=bound),
        jax.random.uniform(bias, (outputs,), minval=-bound, maxval=bound),
    )


def word_ids(words: str, clip: Clip) -> Sequence[int]:
    """Token ids of the initial words of a context."""
    return encode(clip.tokenizer, [words])[0]


def initial_context(rng: jax.Array, clip: Clip, words: str, tokens: int) -> jax.Array:
    """`[T, Dt]`: the embeddings of the first `T` tokens of `words`; N(0, 0.02) if `words` has fewer tokens."""
    ids = word_ids(words, clip)
    if 0 < tokens <= len(ids):
        return jnp.asarray(clip.params["text"]["token_embedding"][np.asarray(ids[:tokens])], jnp.float32)
    return random_prompts(rng, tokens, clip.config.text.width)


def context_text(clip: Clip, words: str, tokens: int, position: str = "end") -> PromptText:
    """The prompt text around a context of `T` tokens: the words themselves, or as many placeholders "X"."""
    count = len(word_ids(words, clip))
    # Placeholders only: words after the context would stay there when the class name moves to the middle or front.
    if tokens > count or (position != "end" and tokens < count):
        words = " ".join(["X"] * tokens)
    return PromptText((f"{words} {{}}.",), context_tokens=tokens, position=position)
