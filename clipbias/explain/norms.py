"""How long learned vectors are, beside the tokens that they join.

Contexts are compared with the token embeddings of the text's other words; the first vision prompts, which are appended
before the pre-LayerNorm, with `[cls]` and the patches there; deeper prompts with the other tokens at the block's input;
biases with all tokens at the block's output, before the bias is added, those by kind each with its own; TaskRes'
residual with the class features it is added to. The tokens are those of the tuned model. Text tokens count from SOS to
EOS.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens, scan, tower
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, patchify
from clipbias.tuning import Learnables, Task


@dataclasses.dataclass(frozen=True)
class Norm:
    """The Euclidean norm of one learned vector, averaged over classes where each class has its own.

    Attributes:
      tower: "vision" or "text".
      part: "context", "prompt", "bias" or "residual".
      layer: the block, from 0, that it is put before (contexts, prompts) or after (biases); `None` for a residual.
      prompt: its number among the prompts of a layer; of a bias by kind, 0 for the vector of `[cls]` or EOS and 1 for
        that of all others; `None` for other biases and residuals.
      norm: its length; of a bias by token, the mean over its rows.
      tokens_norm: mean length of the tokens that it joins, `None` where they were not computed.
    """

    tower: str
    part: str
    layer: int | None
    prompt: int | None
    norm: float
    tokens_norm: float | None


def norms(task: Task, learnables: Learnables, *, classes: int = 64, images: np.ndarray | None = None) -> list[Norm]:
    """The norms of everything learned.

    Args:
      task: of the learnables.
      learnables: of one run.
      classes: at most so many of the task's texts stand for all.
      images: uint8 `[B, R, R, 3]`; without them the vision tower's tokens are not computed.
    """
    adaptation = jax.tree.map(jnp.asarray, task.method.adapt(learnables))
    config, found = task.clip.config, []
    text, vision = _Beside(), _Beside()
    if adaptation.changes_text or adaptation.text_residual is not None:
        params = {"text": task.clip.params["text"]}
        text = _Beside(*_text_norms(params, config, *_first(task, adaptation, classes)))
    prompts = adaptation.vision_prompts
    if prompts is not None and prompts.ndim == 4:  # several sets, of several passes: their mean, layer by layer
        prompts, images = prompts.swapaxes(0, 1), None
    if adaptation.changes_vision and images is not None:
        params = {"vision": task.clip.params["vision"]}
        vision = _Beside(*_vision_norms(params, config, task.clip.preprocessing.normalize(images), adaptation))
    for layer, own in enumerate(_layers(prompts)):
        found += _prompt_norms("vision", "prompt", layer, own, vision)
    if adaptation.text_context is not None:
        found += _prompt_norms("text", "context", 0, adaptation.text_context, text)
    for layer, prompts in enumerate(_layers(adaptation.text_prompts), start=1):
        found += _prompt_norms("text", "prompt", layer, prompts, text)
    for name, bias, beside in (
        ("vision", adaptation.vision_bias, vision),
        ("text", adaptation.text_bias, text),
    ):
        for layer, rows in enumerate(() if bias is None else bias):
            found += _bias_norms(name, layer, rows, beside)
    if adaptation.text_residual is not None:
        length = np.linalg.norm(np.asarray(adaptation.text_residual, np.float64), axis=-1).mean()
        found.append(Norm("text", "residual", None, None, float(length), text.at("features", 0)))
    return found


@dataclasses.dataclass(frozen=True)
class _Beside:
    """Mean norms of a tower's tokens: where the first prompts are put, at block inputs and outputs, at the end."""

    first: Any = None
    inputs: Any = None
    outputs: Any = None
    features: Any = None

    def at(self, where: str, *index: int) -> float | None:
        values = getattr(self, where)
        return None if values is None else float(np.atleast_1d(values)[index])


def _layers(prompts: jax.Array | None) -> Any:
    return () if prompts is None or 0 in prompts.shape else prompts


def _prompt_norms(tower_name: str, part: str, layer: int, prompts: jax.Array, beside: _Beside) -> list[Norm]:
    lengths = np.linalg.norm(np.asarray(prompts, np.float64), axis=-1)
    lengths = lengths.mean(0) if lengths.ndim == 2 else lengths  # over classes
    other = beside.at("first", 0) if layer == 0 else beside.at("inputs", layer)
    return [Norm(tower_name, part, layer, prompt, float(x), other) for prompt, x in enumerate(lengths)]


def _bias_norms(tower_name: str, layer: int, bias: jax.Array, beside: _Beside) -> list[Norm]:
    lengths = np.linalg.norm(np.asarray(bias, np.float64), axis=-1)
    if lengths.shape == (2,):
        return [
            Norm(tower_name, "bias", layer, kind, float(x), beside.at("outputs", layer, kind))
            for kind, x in enumerate(lengths)
        ]
    return [Norm(tower_name, "bias", layer, None, float(lengths.mean()), beside.at("outputs", layer, 0))]


def _first(task: Task, adaptation: Adaptation, classes: int) -> tuple[TextTokens, Adaptation]:
    count = min(classes, len(task.class_names))
    tokens = jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), task.tokens)
    context = adaptation.text_context
    if context is not None and context.ndim == 3:
        each = jnp.repeat(context, len(task.texts) // context.shape[0], axis=0)[:count]
        adaptation = dataclasses.replace(adaptation, text_context=each)
    if adaptation.text_class_prompts is not None:
        adaptation = dataclasses.replace(adaptation, text_class_prompts=adaptation.text_class_prompts[:count])
    return tokens, adaptation


def _mean_norm(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    lengths = jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)
    return jnp.where(mask, lengths, 0).sum() / mask.sum()


def _run(
    inputs: tower.TowerInput, config: TowerConfig, others: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tokens after the last block; mean norms `[L]` at block inputs over `others`, `[L, K]` at outputs.

    Those are over the `real` tokens, `K = 1`, or with a bias by kind over those of each of the two.
    """
    bias, kinds = inputs.layers.bias, [real]
    if bias is not None and bias.shape[1:-1] == (2,):
        kinds = [real & (inputs.bias_rows == kind) for kind in range(2)]

    def step(tokens: jax.Array, layer: scan.LayerInput) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        output, view = tower.layer(tokens, layer, inputs, config)
        before = output if layer.bias is None else output - tower.bias_of_tokens(layer.bias, inputs.bias_rows)
        return output, (_mean_norm(view.tokens, others), jnp.stack([_mean_norm(before, kind) for kind in kinds]))

    tokens, (at_inputs, at_outputs) = jax.lax.scan(step, inputs.tokens, inputs.layers)
    return tokens, at_inputs, at_outputs


@functools.partial(jax.jit, static_argnums=1)
@with_precision
def _text_norms(
    params: Any, config: ClipConfig, tokens: TextTokens, adaptation: Adaptation, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, ...]:
    real = tokens.counted
    has_prompts = adaptation.text_context is not None or adaptation.text_prompts is not None
    learned = (tokens.context_rows >= 0) & has_prompts
    others = real & ~learned
    embeddings = params["text"]["token_embedding"].astype(dtype)[tokens.ids]
    inputs = embed_text(params, config, tokens, adaptation, dtype=dtype)
    states, at_inputs, at_outputs = _run(inputs, config.text, others, real)
    features = project_text(params, config, tower.take_rows(states, tokens.eos), adaptation)
    length = jnp.linalg.norm(features, axis=-1).mean()
    return _mean_norm(embeddings, others), at_inputs, at_outputs, length


@functools.partial(jax.jit, static_argnums=1)
@with_precision
def _vision_norms(
    params: Any, config: ClipConfig, images: jax.Array, adaptation: Adaptation, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, ...]:
    weights, geometry = params["vision"], config.vision
    inputs = embed_image(params, config, images, adaptation, dtype=dtype)
    real = jnp.ones(inputs.tokens.shape[:2], bool)
    others = real & (jnp.arange(real.shape[1]) < geometry.tokens)
    # Where the first prompts are appended: before the pre-LayerNorm.
    before = patchify(images.astype(dtype), geometry.patch_size) @ weights["patch_embedding"].astype(dtype)
    if geometry.first_patch:
        cls = jnp.broadcast_to(weights["class_embedding"].astype(dtype), (len(images), 1, geometry.width))
        before = jnp.concatenate([cls, before], axis=1)
    else:
        before = before + weights["patch_bias"].astype(dtype)
    before = before + weights["position_embedding"].astype(dtype)
    _, at_inputs, at_outputs = _run(inputs, geometry, others, real)
    return _mean_norm(before, jnp.ones(before.shape[:2], bool)), at_inputs, at_outputs
