"""Checkpoints of other trainers as adapters: CoOp, CoCoOp, VPT, IVLP, MaPLe and PromptSRC, as Dassl saves them.

`model.pth.tar-N` holds `state_dict` beside an optimiser and a scheduler, which is an object. The tensors are read
without PyTorch, and nothing in the file is run. The names of its tensors tell the method. CoOp and CoCoOp save the
prompt learner alone, the others the whole model with the frozen CLIP, which is compared with the user's. Class names
are not in the file, but the embeddings of their tokens are: the nearest rows of CLIP's table give them.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.clip import Clip
from clipbias.clip.tables import OPEN_CLIP, Layout
from clipbias.clip.tensors import FLOATING, Tensor
from clipbias.clip.tokenizer import encode
from clipbias.clip.torch_file import open_torch
from clipbias.constants import WORDS
from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.tuning.adapter import Adapter, make_adapter
from clipbias.tuning.classes import Classes, ClassList
from clipbias.tuning.context import word_ids
from clipbias.tuning.learnables import flatten
from clipbias.tuning.task import Task

# PromptSRC's averages run over the frozen weights in half precision, which moves them by some ten-thousandths.
FROZEN_TOLERANCE = 0.01
# Where a tower's prompts lie: those of the first block, and those of the blocks behind it.
LATER = r"{}\.transformer\.resblocks\.(\d+)\.VPT_shallow"
LEARNER = "prompt_learner."
TRAINERS = "CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC"

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainerFile:
    """The learnables of a checkpoint.

    Attributes:
      method: the name of the method here; options: what the shapes say of it.
      learnables: as the method has them here, float32.
      tokens: `T`, how many tokens of the text are learned; 0 for none.
      suffix: embeddings of what stands behind the context in the text of each class, `[C, n, Dt]`; `None` without.
    """

    method: str
    options: Mapping[str, Any]
    learnables: Arrays
    tokens: int = 0
    suffix: np.ndarray | None = None


def import_adapter(
    path: str | os.PathLike,
    clip: Clip,
    classes: Sequence[str] | ClassList | None = None,
    *,
    template: str | None = None,
    position: str = "end",
    notes: Mapping[str, object] | None = None,
) -> Adapter:
    """A checkpoint of another trainer as an adapter.

    Args:
      path: a `model.pth.tar-N`.
      clip: the CLIP that it was trained on.
      classes: class names or a dataset; `None` takes the names of training, whose tokens are in the file.
      template: the dataset's own template, for methods whose teacher takes it.
      position: of the class name among CoOp's words: "end", "middle" or "front". The file does not say.
      notes: of the adapter.

    Raises:
      ClipbiasError: the file is damaged, of another trainer, has a gap in depth, or another width or frozen weights
        than `clip`; or a context for each class has another number of classes.
    """
    path = user_path(path)
    if clip.config.family != "clip":
        raise ClipbiasError(f"these trainers tune OpenAI's CLIP, and {clip.name} is a {clip.config.family}.")
    with open_torch(path, skip_objects=True) as tensors:
        try:
            arrays = _arrays(tensors)
            file = read_trainer_file(arrays)
            _check_widths(file, clip)
            _check_frozen(arrays, clip)
        except ClipbiasError as error:
            raise ClipbiasError(f"{path} is not imported: {error}") from error
    options = dict(file.options)
    ids = None if file.suffix is None else nearest_tokens(file.suffix, clip)
    if file.tokens:
        options["words"] = _words(file.tokens, ids, clip)
    if file.method == "coop":
        options["position"] = position
    named = _names_of(ids, options["words"], file.tokens, clip) if classes is None else Classes.of(classes)
    if named is None:
        raise ClipbiasError(f"{path} has no text of the classes; give their names or a dataset.")
    count = file.learnables["text_context"].shape[0] if options.get("class_specific") else len(named.class_names)
    if count != len(named.class_names):
        raise ClipbiasError(
            f"{path} has a context for each of {count} classes, and there are {len(named.class_names)} class names; "
            "give those of training."
        )
    task = Task(clip, file.method, named, template=template, **options)
    expected = {name: leaf.shape for name, leaf in flatten(task.shapes).items()}
    shapes = {name: value.shape for name, value in file.learnables.items()}
    if shapes != expected:
        odd = min(name for name in expected if shapes.get(name) != expected[name])
        raise ClipbiasError(f"{path} is not imported: its {odd} is {shapes.get(odd)}, and should be {expected[odd]}.")
    return make_adapter(task, file.learnables, notes=dict(notes or {}) | {"imported": path.name})


def read_trainer_file(arrays: Arrays) -> TrainerFile:
    """What a state dictionary holds, told by its names.

    Raises:
      ClipbiasError: it is of another trainer, or has a gap in depth.
    """
    plain = {name.removeprefix(LEARNER): value for name, value in arrays.items()}
    if any(name.startswith("VPT_image_trans.") for name in arrays):
        raise ClipbiasError("it is a student of PromptKD, whose classes are the features of a teacher that it lacks.")
    suffix = plain.get("token_suffix")
    if "meta_net.linear1.weight" in plain:
        return _cocoop(plain, suffix)
    if "compound_prompts_text.0" in plain or "proj.weight" in plain:
        return _maple(plain, suffix)
    vision = _deep_prompts(arrays, "image_encoder", first=arrays.get("image_encoder.VPT"))
    if vision is not None and "ctx" not in plain:
        return TrainerFile("vpt", {"tokens": vision.shape[1], "depth": len(vision)}, {"vision_prompts": vision})
    if "ctx" not in plain:
        raise ClipbiasError(f"it holds no prompts of {TRAINERS}.")
    text = _deep_prompts(arrays, "text_encoder", first=plain["ctx"]) if plain["ctx"].ndim == 2 else None
    if vision is None and (text is None or len(text) == 1):
        context = plain["ctx"]
        options = {"tokens": context.shape[-2], "class_specific": context.ndim == 3}
        return TrainerFile("coop", options, {"text_context": context}, context.shape[-2], suffix)
    if vision is None or text is None:
        raise ClipbiasError("it has deep prompts in the text tower alone, which no method here has.")
    is_src = any(name.startswith(f"{LEARNER}ZS_image_encoder.") for name in arrays)
    options = {
        "text_tokens": text.shape[1],
        "vision_tokens": vision.shape[1],
        "text_depth": len(text),
        "vision_depth": len(vision),
    }
    learnables = {"text_context": text[0], "text_prompts": text[1:], "vision_prompts": vision}
    return TrainerFile("promptsrc" if is_src else "ivlp", options, learnables, text.shape[1], suffix)


def nearest_tokens(embeddings: np.ndarray, clip: Clip) -> np.ndarray:
    """The ids `[C, n]` of CLIP's token embeddings that are nearest to `embeddings [C, n, Dt]`."""
    table = np.asarray(clip.params["text"]["token_embedding"], np.float32)
    rows = embeddings.reshape(-1, table.shape[1])
    distinct, places = np.unique(rows, axis=0, return_inverse=True)
    squares = np.square(table).sum(-1)
    ids = [int((squares - 2 * table @ row).argmin()) for row in distinct]
    return np.asarray(ids)[places.reshape(-1)].reshape(embeddings.shape[:2])


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """All tensors of floating point, float32."""
    return {name: np.asarray(tensor.read(), np.float32) for name, tensor in tensors.items() if tensor.dtype in FLOATING}


def _deep_prompts(arrays: Arrays, tower: str, *, first: np.ndarray | None) -> np.ndarray | None:
    """A tower's prompts `[depth, T, D]`; `None` where it has none.

    Raises:
      ClipbiasError: blocks in between, or the first one, have none.
    """
    pattern = re.compile(LATER.format(tower))
    later = {int(match[1]): name for name in arrays if (match := pattern.fullmatch(name))}
    if first is None and not later:
        return None
    blocks = sorted(later)
    if first is None or blocks != [*range(1, len(blocks) + 1)]:
        missing = 0 if first is None else min(set(range(1, max(blocks))) - set(blocks))
        raise ClipbiasError(
            f"the {tower} has prompts in block {max(blocks)} and none in block {missing}; no method has such a gap."
        )
    return _stacked([first, *(arrays[later[block]] for block in blocks)], f"prompts of the {tower}")


def _stacked(rows: Sequence[np.ndarray], what: str) -> np.ndarray:
    if len({row.shape for row in rows}) > 1:
        raise ClipbiasError(f"the {what} differ in shape from block to block.")
    return np.stack(rows)


def _cocoop(plain: Arrays, suffix: np.ndarray | None) -> TrainerFile:
    learnables = {"text_context": _of(plain, "ctx")}
    for ours, theirs in (("hidden", "linear1"), ("output", "linear2")):
        learnables[f"text_{ours}_kernel"] = _of(plain, f"meta_net.{theirs}.weight").T
        learnables[f"text_{ours}_bias"] = _of(plain, f"meta_net.{theirs}.bias")
    tokens = learnables["text_context"].shape[0]
    return TrainerFile("cocoop", {"tokens": tokens}, learnables, tokens, suffix)


def _maple(plain: Arrays, suffix: np.ndarray | None) -> TrainerFile:
    names = [name for name in plain if name.startswith("compound_prompts_text.")]
    blocks = sorted(int(name.rpartition(".")[2]) for name in names)
    if blocks != [*range(len(blocks))]:
        missing = min(set(range(max(blocks))) - set(blocks))
        raise ClipbiasError(f"it has prompts of block {max(blocks) + 1} and none of block {missing + 1}.")
    maps = ["proj", *(f"compound_prompt_projections.{block}" for block in blocks)]
    context = _of(plain, "ctx")
    text = [_of(plain, f"compound_prompts_text.{block}") for block in blocks]
    learnables = {
        "text_context": context,
        "text_prompts": _stacked([context, *text], "text prompts")[1:],
        "projection_kernel": _stacked([_of(plain, f"{name}.weight").T for name in maps], "projections"),
        "projection_bias": _stacked([_of(plain, f"{name}.bias") for name in maps], "projections' biases"),
    }
    return TrainerFile("maple", {"tokens": len(context), "depth": len(maps)}, learnables, len(context), suffix)


def _of(plain: Arrays, name: str) -> np.ndarray:
    if name not in plain:
        raise ClipbiasError(f"it lacks {name!r}.")
    return plain[name]


def _check_widths(file: TrainerFile, clip: Clip) -> None:
    """Raises `ClipbiasError` where prompts have another width than the model's tower, or more blocks."""
    for name, value in file.learnables.items():
        tower = {"text_context": "text", "text_prompts": "text", "vision_prompts": "vision"}.get(name)
        if tower is None:
            continue
        geometry = getattr(clip.config, tower)
        if value.shape[-1] != geometry.width:
            raise ClipbiasError(
                f"its {tower} prompts are {value.shape[-1]} wide, and the {tower} tower of {clip.name} is "
                f"{geometry.width} wide; load the CLIP that it was trained on."
            )
        depth = len(value) + (name == "text_prompts")
        if name != "text_context" and depth > geometry.layers:
            raise ClipbiasError(
                f"it has prompts in {depth} blocks, and the {tower} tower of {clip.name} has {geometry.layers}; load "
                "the CLIP that it was trained on."
            )


def _check_frozen(arrays: Arrays, clip: Clip) -> None:
    """Raises `ClipbiasError` where frozen weights in the file are not those of the model."""
    for name, ours in _frozen_weights(clip):
        theirs = arrays.get(name)
        if theirs is None:
            continue
        weights = ours()
        distance = np.inf
        if theirs.shape == weights.shape:
            distance = float(np.linalg.norm(theirs - weights) / max(float(np.linalg.norm(weights)), 1e-12))
        if distance > FROZEN_TOLERANCE:
            raise ClipbiasError(f"its frozen weights are not those of {clip.name} (see {name}); load their CLIP.")
    start = arrays.get("token_prefix", arrays.get(f"{LEARNER}token_prefix"))
    if start is not None:
        table = np.asarray(clip.params["text"]["token_embedding"], np.float32)
        (first, *_), *_ = clip.tokenize([WORDS])
        row = table[first]
        if start.shape[-1] != len(row) or np.linalg.norm(start[0, 0] - row) > FROZEN_TOLERANCE * np.linalg.norm(row):
            raise ClipbiasError(f"its texts begin with another token than those of {clip.name}; load their CLIP.")


def _frozen_weights(clip: Clip) -> list[tuple[str, Callable[[], np.ndarray]]]:
    """The frozen weights by the names that these trainers give them, each made when it is called for."""
    weights: list[tuple[str, Callable[[], np.ndarray]]] = []
    for row in OPEN_CLIP.rows:
        tower, _, leaf = row.path.partition("/")
        if tower == "vision":
            name = f"image_encoder.{row.name.removeprefix('visual.')}"
        else:
            name = row.name if tower == "logit_scale" else f"text_encoder.{row.name}"
        value: Any = clip.params
        for part in row.path.split("/"):
            value = value[part]
        blocks = range(len(value)) if leaf.startswith("layers/") else (None,)
        for block in blocks:
            of_block = value if block is None else value[block]
            save = functools.partial(_saved, row.layout, of_block)
            weights.append((name if block is None else name.format(block), save))
    return weights


def _saved(layout: Layout, leaf: Any) -> np.ndarray:
    return np.asarray(layout.save(np.asarray(leaf, np.float32)))


def _words(tokens: int, ids: np.ndarray | None, clip: Clip) -> str:
    """The words of the context: the usual ones, unless the fixed ones behind the context are others."""
    rest = [*word_ids(WORDS, clip)][tokens:]
    if ids is None or not rest or (ids[:, : len(rest)] == rest).all():
        return WORDS
    return " ".join(["X"] * tokens)


def _names_of(ids: np.ndarray | None, words: str, tokens: int, clip: Clip) -> Classes | None:
    """The class names of training, from the tokens behind the context: words that stay, the name and a full stop."""
    if ids is None:
        return None
    start = len(word_ids(words, clip)[tokens:])
    stop = encode(clip.tokenizer, ["."])[0]
    end = clip.config.text.eos_token_id
    names = []
    for row in ids.tolist():
        text = row[start : row.index(end)] if end in row else row[start:]
        text = text[: -len(stop)] if text[-len(stop) :] == stop else text
        names.append(clip.tokenizer.decode(text).strip())
    return Classes(tuple(names))
