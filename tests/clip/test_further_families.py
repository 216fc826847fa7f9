"""All families but CLIP against their owners' code, in every layout of their names and several geometries.

Random weights; expected numbers by `tools/reference/write_families.py` of commit 4ca177e7.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, encode_image, encode_packed_text, encode_text, pack, tower
from clipbias.clip.params import Params
from clipbias.clip.text import as_tokens
from clipbias.clip.vision import embed_image, pool_image, project_image
from clipbias.errors import ClipbiasError
from tests import families, torch_files
from tests.families import CLASSES, DATA, EVERY, FAMILIES, LABELS, METHODS, Arrays, Reference, difference

FEATURES, GRADIENTS = 5e-6, 3e-5  # relative to the largest number
NEW = ("pe", "biomed_clip", "chinese_clip")


def layouts() -> list[Any]:
    """A family and the number of its geometry; further geometries are for long tests."""
    return [pytest.param(*pair, marks=() if pair[1] == 1 else pytest.mark.long) for pair in EVERY]


def heavy(methods: Sequence[str] = ()) -> list[Any]:
    """The same for tests that the short ones leave out, at full length; of methods, LoRA in the first
    geometries: prompts and biases have the gradients of the owners above."""
    if not methods:
        return [pytest.param(*pair, marks=pytest.mark.ci if pair[1] == 1 else pytest.mark.long) for pair in EVERY]
    cases = [(*pair, method) for pair in EVERY for method in methods if pair[0] in FAMILIES]
    is_first = [number == 1 and method == "clip_lora" for _, number, method in cases]
    marks = [pytest.mark.ci if first else pytest.mark.long for first in is_first]
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def model(family: str, number: int, folder: Path) -> Reference:
    return families.reference(family, number, folder)


@pytest.fixture
def perception_encoder(folder: Path) -> Reference:
    return families.reference("pe", 1, folder)


@pytest.mark.parametrize(("family", "number"), layouts())
def test_tokens_and_logits_equal_the_owners(model):
    clip = model.clip
    task = clipbias.Task(clip, "zero_shot", CLASSES)
    ids = np.asarray(task.tokens.ids)
    tokens = model.expected["tokens"][:, : ids.shape[1]]
    if clip.config.text.causal:  # nothing behind the end of a text counts
        behind = np.arange(ids.shape[1]) > np.asarray(task.tokens.eos)[:, None]
        ids, tokens = (np.where(behind, 0, x) for x in (ids, tokens))
    np.testing.assert_array_equal(ids, tokens)
    logits = jax.jit(task.logits)(clip.params, task.init(), model.images)
    assert difference(logits, model.expected["logits"]) < FEATURES


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(config: Any, params: Any, images: Any, ids: Any, added: Any, packed: Any) -> dict[str, Any]:
    """Features, and loss, logits and gradients of an adaptation with texts in both layouts."""

    def loss(added: Any, whole: bool) -> Any:
        adaptation = Adaptation(**added)
        image = encode_image(params, config, images, adaptation)[0]
        if whole:
            text = encode_text(params, config, ids, adaptation)[0]
        else:
            text = encode_packed_text(params, config, packed, adaptation)
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = jnp.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.array(LABELS)[:, None], 1).mean(), logits

    arrays = {"image_features": encode_image(params, config, images)[0]}
    arrays["text_features"] = encode_text(params, config, as_tokens(ids, config))[0]
    for whole in (True, False):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(added, whole)
        arrays |= {f"{whole}.{k}": v for k, v in {"adapted.loss": value, "adapted.logits": logits}.items()}
        arrays |= {f"{whole}.gradient.{name}": leaf for name, leaf in gradients.items()}
    return arrays


@pytest.mark.parametrize(("family", "number"), heavy())
def test_features_and_gradients_equal_the_owners(model):
    clip, expected = model.clip, model.expected
    ids = expected["tokens"].astype(np.int32)
    added = families.start_of(model.family, model.geometry, "added")
    packed = pack(as_tokens(ids, clip.config, 2), groups=3)
    for name, value in outputs_of(clip.config, clip.params, model.images, ids, added, packed).items():
        plain = name.removeprefix("True.").removeprefix("False.")
        assert difference(value, expected[plain]) < (GRADIENTS if "gradient" in plain else FEATURES), name


def rounded_otherwise(leaf: jax.Array, draw: np.random.Generator) -> jax.Array:
    """Up or down by half a unit in the last place."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    ulp = np.finfo(np.float32).eps / 2
    return jnp.asarray(np.asarray(leaf) * (1 + ulp * draw.choice((-1, 1), np.shape(leaf))), leaf.dtype)


@pytest.mark.parametrize(("family", "number", "method"), heavy(METHODS))
def test_three_steps_equal_the_owners(model, method):
    """Three steps of SGD. Other forms of a family have the same code.

    Learnables may differ by as much as they move where each weight is rounded otherwise: steep losses magnify that.
    """
    task = families.task_of(model, method)
    start = families.as_learnables(families.start_of(model.family, model.geometry, method))
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, jax.eval_shape(task.init))

    @jax.jit
    def step(params: Params, learnables: Any, velocity: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(task.loss, argnums=1)(params, learnables, model.images, jnp.array(LABELS))
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, gradient, learnables)
        return jax.tree.map(lambda p, v: p - families.RATE * v, learnables, velocity), velocity, loss

    def train(params: Params) -> tuple[list[np.ndarray], jax.Array]:
        learnables, velocity = start, jax.tree.map(jnp.zeros_like, start)
        for _ in range(families.STEPS):
            learnables, velocity, loss = step(params, learnables, velocity)
        return jax.tree.leaves(learnables), loss

    learnables, loss = train(model.clip.params)
    draw = np.random.default_rng(0)
    moved, _ = train(jax.tree.map(lambda leaf: rounded_otherwise(leaf, draw), model.clip.params))
    rounding = max(difference(leaf, np.asarray(other)) for leaf, other in zip(moved, learnables, strict=True))
    assert difference(loss, model.expected[f"{method}.loss"]) < max(GRADIENTS, rounding)
    expected = jax.tree.leaves(families.trained(model, method))
    for leaf, other in zip(learnables, expected, strict=True):
        assert difference(leaf, np.asarray(other)) < max(GRADIENTS, rounding)


@pytest.mark.parametrize(("family", "number"), [(family, 1) for family in FAMILIES])
def test_what_is_saved_is_what_the_owners_wrote(model, tmp_path):
    clip = model.clip
    with families.sizes(model.geometry):
        clip.save(tmp_path)
    name = "model.safetensors" if (tmp_path / "model.safetensors").exists() else "open_clip_model.safetensors"
    saved, theirs = (safetensors.numpy.load_file(Path(folder) / name) for folder in (tmp_path, clip.name))
    assert saved.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(saved[key], value)
    if name == "model.safetensors":
        configs = [json.loads((Path(place) / "config.json").read_text()) for place in (tmp_path, clip.name)]
        for key in ("model_type", "architectures"):
            assert configs[0][key] == configs[1][key]


def metas_names(state: Arrays) -> Arrays:
    """timm's Perception Encoder under the names of Meta's `.pt`, written down from that file's code alone."""
    new: Arrays = {}
    for name, value in state.items():
        if name.startswith("text."):
            new[name.removeprefix("text.")] = value
            continue
        short = name.removeprefix("visual.trunk.")
        short = short.replace("blocks.", "transformer.resblocks.").replace("attn.proj", "attn.out_proj")
        for old, meta in (("norm1", "ln_1"), ("norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
            short = short.replace(old, meta)
        for kind in ("weight", "bias"):
            short = short.replace(f"attn.qkv.{kind}", f"attn.in_proj_{kind}")
        new["logit_scale" if name == "logit_scale" else f"visual.{short}"] = value
    new["visual.class_embedding"] = new.pop("visual.cls_token")[0, 0]
    new["visual.positional_embedding"] = new.pop("visual.pos_embed")[0]
    new["visual.conv1.weight"] = new.pop("visual.patch_embed.proj.weight")
    new["visual.proj"] = new.pop("visual.head.weight").T.copy()
    new.pop("visual.head.bias")
    for kind in ("weight", "bias"):
        new[f"visual.ln_pre.{kind}"] = new.pop(f"visual.norm_pre.{kind}")
        new[f"visual.ln_post.{kind}"] = new.pop(f"visual.norm.{kind}")
        parts = [new.pop(f"visual.attn_pool.{part}.{kind}") for part in ("q", "kv")]
        new[f"visual.attn_pool.attn.in_proj_{kind}"] = np.concatenate(parts)
        new[f"visual.attn_pool.attn.out_proj.{kind}"] = new.pop(f"visual.attn_pool.proj.{kind}")
        new[f"visual.attn_pool.layernorm.{kind}"] = new.pop(f"visual.attn_pool.norm.{kind}")
    new["visual.attn_pool.probe"] = new.pop("visual.attn_pool.latent")
    return new


def test_metas_own_file(perception_encoder, tmp_path):
    """Alone in a folder as on the hub, without a configuration: its sizes come from its shapes."""
    clip = perception_encoder.clip
    state = metas_names(safetensors.numpy.load_file(DATA / "pe" / "open_clip_model.safetensors"))
    torch_files.save(tmp_path / "PE-Core-T8-8.pt", state)
    for source in (tmp_path, tmp_path / "PE-Core-T8-8.pt"):
        own = clipbias.load(source, tokenizer=DATA / "pe")
        assert (own.fingerprint, own.config, own.preprocessing) == (clip.fingerprint, clip.config, clip.preprocessing)
    torch_files.save(
        tmp_path / "PE-Core-T8-8.pt", {name: x for name, x in state.items() if name != "visual.class_embedding"}
    )
    with pytest.raises(ClipbiasError, match=r"\(a Perception Encoder without visual\.class_embedding\); "):
        clipbias.load(tmp_path)


def test_chinese_clips_own_file(folder, tmp_path):
    """OpenAI's names for images and BERT's for texts, inside a training checkpoint."""
    clip = families.reference("chinese_clip", 1, folder).clip
    theirs = safetensors.numpy.load_file(DATA / "chinese_clip" / "model.safetensors")
    state: Arrays = {}
    for name, value in theirs.items():
        if name.startswith("text_model."):
            state[name.replace("text_model.", "bert.")] = value
    vision = "vision_model."
    for layer in range(clip.config.vision.layers):
        old, new = f"{vision}encoder.layers.{layer}.", f"visual.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [theirs[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{new}attn.in_proj_{kind}"] = np.concatenate(parts)
            pairs = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
            pairs |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
            state |= {f"{new}{ours}.{kind}": theirs[f"{old}{one}.{kind}"] for one, ours in pairs.items()}
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = theirs[f"{vision}pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = theirs[f"{vision}post_layernorm.{kind}"]
    state["visual.class_embedding"] = theirs[f"{vision}embeddings.class_embedding"]
    state["visual.positional_embedding"] = theirs[f"{vision}embeddings.position_embedding.weight"]
    state["visual.conv1.weight"] = theirs[f"{vision}embeddings.patch_embedding.weight"]
    state["visual.proj"] = theirs["visual_projection.weight"].T.copy()
    state["text_projection"] = theirs["text_projection.weight"].T.copy()
    state["logit_scale"] = theirs["logit_scale"]
    torch_files.save(tmp_path / "clip_cn_vit-b-16.pt", state)
    own = clipbias.load(tmp_path, tokenizer=DATA / "chinese_clip")
    assert (own.fingerprint, own.config) == (clip.fingerprint, clip.config)
    assert own.preprocessing.resizing.whole


def test_patches_have_no_features_in_a_tower_with_a_pooling_head(perception_encoder):
    clip = perception_encoder.clip
    with pytest.raises(ClipbiasError, match="patches have no features in a tower with a pooling head"):
        encode_image(clip.params, clip.config, perception_encoder.images, patches=True)


def test_an_activation_is_no_choice():
    with pytest.raises(ClipbiasError, match="the activation of chinese_clip is known"):
        clipbias.load(DATA / "chinese_clip", activation="gelu")


@pytest.mark.parametrize(("family", "number"), [case for case in heavy() if case.values[0] in NEW])
def test_relevancy_is_that_of_whole_matrices(model):
    """Gradients by taps; the row starts at the pooled token, or at the pooling head."""
    clip = model.clip
    task = clipbias.Task(clip, "zero_shot", CLASSES)
    images = jnp.asarray(model.images)
    targets = jnp.array(LABELS)
    maps = clipbias.relevancy(task, clip.params, task.init(), images, targets)
    vision = clip.config.vision
    layers, count = vision.layers, vision.tokens
    texts = encode_text(clip.params, clip.config, jnp.asarray(model.expected["tokens"], jnp.int32))[0][targets]

    def score(taps: jax.Array, tap: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        inputs = embed_image(clip.params, clip.config, images)
        tokens, seen = tower.run_explicit(inputs, vision, taps=taps, observe=lambda view: view.probabilities)
        if vision.pooling == "attention":
            pooled = pool_image(clip.params, clip.config, tokens, tap=tap)
            features, row = pooled.feature, pooled.probabilities
        else:
            features, row = project_image(clip.params, clip.config, tokens), tap
        unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (features, texts)]
        return jnp.exp(clip.params["logit_scale"]) * (unit[0] * unit[1]).sum(), (seen, row)

    heads = vision.pool_heads or 1
    zeros = (jnp.zeros((layers, 3, vision.heads, count, count)), jnp.zeros((3, heads, count)))
    gradients, (seen, row) = jax.jit(jax.grad(score, argnums=(0, 1), has_aux=True))(*zeros)
    whole = jnp.broadcast_to(jnp.eye(count), (3, count, count))
    for gradient, attention in zip(gradients[0], seen, strict=True):
        mean = jax.nn.relu(gradient * attention).mean(1)
        whole = whole + mean @ whole
    if vision.pooling == "attention":
        start = jax.nn.relu(gradients[1] * row).mean(1)
        wanted = jnp.einsum("bn,bnm->bm", start, whole)
    else:
        wanted = whole[:, 0]
    first = vision.first_patch
    assert difference(maps.vision, np.asarray(wanted)[:, first:]) < GRADIENTS
