"""Wrong models, images, texts, labels and types, and changes that fit no model."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip import Adaptation, encode_image, encode_text
from clipbias.clip.checkpoint import WEIGHTS, choose
from clipbias.clip.encode import check_images
from clipbias.clip.precision import resolve
from clipbias.data.user_images import label_numbers
from clipbias.export import fold
from tests.bad_files import NO_OBJECT, cut
from tests.wrong_inputs.place import Case, Place, case, pure

FORMATS = Path(__file__).parents[1] / "data_files" / "formats"
OPEN_CLIP = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
TOKENS = "tokenizer.json"
IMAGES = np.zeros((2, 16, 16, 3), np.float32)
LEVELS = np.zeros((2, 30, 22, 3), np.uint8)
IDS = "text_model.embeddings.position_ids"
Tensors = dict[str, np.ndarray]
NO_TYPE = "^dtype is 'float16'; choose from"
PAIR = {"down": np.zeros((3, 1, 24, 2)), "up": np.zeros((3, 1, 2, 72))}


loaded = case(lambda place, *source, **options: clipbias.load(*source, **options))
preprocessed = case(lambda place, images: place.clip.preprocess(images))
folded = case(lambda place, **changes: fold(place.clip.params, Adaptation(**changes)))
labelled = case(lambda place, labels: label_numbers(labels, ("cat", "dog")))


@case
def damaged(place: Place, name: str, damage: Callable[[Path], Any], format: str = "") -> None:
    """A model of which one file is damaged."""
    folder = Path(shutil.copytree(FORMATS / format if format else place.model, place.tmp_path / "model"))
    damage(folder / name)
    clipbias.load(folder)


def open_clip(words: str, part: str, **values: Any) -> Case:
    """open_clip's configuration with other values."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        (content["model_cfg"][part] if part else content["model_cfg"]).update(values)
        path.write_text(json.dumps(content))

    return damaged(rf"^(?=.*/model/{re.escape(CONFIG)}).*{words}", CONFIG, damage, "open_clip")


def tensors(words: str, name: str, change: Callable[[Tensors], Tensors], lost: str = "") -> Case:
    """Weights in a format with other tensors, without one: all the words stand in the message, and no buffer."""
    format, _, file = name.rpartition("/")
    others = lambda whole: {name: value for name, value in whole.items() if name != lost} | change(whole)  # noqa: E731
    pattern = "(?s)^(?!.*(position_ids|attn_mask))" + "".join(f"(?=.*{re.escape(each)})" for each in words.split("|"))
    return damaged(pattern, file, lambda path: save_file(others(load_file(path)), path), format)


@case
def chosen(place: Place, *names: str, **options: Any) -> None:
    """A choice among files that lie beside timm's configuration."""
    (place.tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    choose(place.tmp_path, list(names), **options)


def images(words: str, array: np.ndarray) -> list[Case]:
    """Each function that takes images."""
    labels = np.array([0, 1])
    calls = (
        lambda task, params, learned: check_images(array, 16),
        lambda task, params, learned: task.logits(params, learned, array),
        lambda task, params, learned: jax.eval_shape(task.loss, params, learned, array, labels),
        lambda task, params, learned: task.image_features(params, learned, array),
        lambda task, params, learned: clipbias.relevancy(task, params, learned, array, labels),
    )
    return [(words, lambda place, call=call: call(*place.learned())) for call in calls]


@case
def encoded(place: Place, **changes: Any) -> None:
    """Images, or texts where a change is of their tower."""
    clip = place.clip
    adaptation = Adaptation(**changes)
    if any(name.startswith("text") for name in changes):
        encode_text(clip.params, clip.config, clip.tokenize(["a cat."]), adaptation)
    else:
        encode_image(clip.params, clip.config, IMAGES, adaptation)


def bias(tower: str, *shape: int) -> Case:
    words = rf"^{tower}_bias has shape \({shape[0]}, .* by token\.$"
    return encoded(words, **{f"{tower}_bias": np.zeros(shape, np.float32)})


def weights(words: str, **layers: Any) -> Case:
    return encoded(re.escape(words), vision_weights={"layers": layers})


CASES: list[Case] = [
    # Where a model should be.
    *(loaded("is no path", source) for source in (None, "")),
    *(loaded("no folder", source) for source in ("nothing", "a/b/c")),
    loaded("is not complete in the local cache", f"x/y@{'z' * 300}"),
    loaded("the activation is 'relu'", FORMATS / "open_clip", activation="relu"),
    *(
        damaged(
            "is damaged or incomplete", WEIGHTS, lambda path, how=how: path.write_bytes(cut(path.read_bytes())[how])
        )
        for how in cut(b"")
    ),
    *(
        damaged(r"config\.json", "config.json", lambda path, content=content: path.write_text(content))
        for content in (*NO_OBJECT, '{"model_type": "bert"}', '{"text_config": 3}')
    ),
    *(
        damaged(words, name, lambda path: (path.unlink(), os.mkfifo(path)), "open_clip")
        for name, words in ((OPEN_CLIP, "no CLIP weights"), (CONFIG, "no open_clip_config"), (TOKENS, "is a pipe"))
    ),
    chosen(r"config\.json holds a network that .* \(architecture", *("config.json", "model.safetensors")),
    ("it holds nothing", lambda place: choose(place.tmp_path / "none")),
    # Other networks, by open_clip's configuration.
    open_clip(r"\(init_logit_bias = -10\)", "", init_logit_bias=-10),
    open_clip("asks for images of 16 pixels in a tower", "vision_cfg", timm_model_name="vit_base_patch16_siglip_224"),
    open_clip(r"vision_cfg\.pool_type = 'avg'", "vision_cfg", pool_type="avg"),
    open_clip("not square", "vision_cfg", image_size=[16, 32]),
    open_clip(r"text_cfg\.a_new_option", "text_cfg", a_new_option=1),
    # Numbers that are none, in both formats.
    *(
        tensors(
            f"holds NaN or infinite numbers in {name};",
            file,
            lambda whole, name=name, bad=bad: {name: whole[name] + bad},
        )
        for name, file, bad in (
            ("visual_projection.weight", WEIGHTS, np.float32(np.nan)),
            ("ln_final.bias", f"open_clip/{OPEN_CLIP}", np.float32(-np.inf)),
        )
    ),
    # All differences in a single message.
    tensors(
        "(3 differences)|missing: visual_projection.weight|unexpected: adapter.weight (2, 2)"
        "|wrong shape: logit_scale is (3,), the configuration asks for ()",
        WEIGHTS,
        lambda _: {"logit_scale": np.zeros(3), "adapter.weight": np.zeros((2, 2)), IDS: np.zeros((1, 24), int)},
        lost="visual_projection.weight",
    ),
    # Images, texts, labels, types.
    preprocessed("cannot read the image .*nowhere.png", "nowhere.png"),
    preprocessed("/a//b.png is an address of the web; .*give the path", "https://example.org/a//b.png"),
    preprocessed(r"image 0 holds float64 numbers; .* of levels from 0 to 1 \(255 \* image\)", np.zeros((4, 4, 3))),
    preprocessed(r"of a tensor image\.clip\(0, 255\)\.round\(\)\.byte\(\)", np.full((4, 4, 3), 200, np.float32)),
    *images("the images are uint8, so they are not normalised; give clip.preprocess", IMAGES.astype(np.uint8)),
    pure(r"shape \[16, 16, 3\]; give \[B, 16, 16, 3\]; for one image, images\[", check_images, IMAGES[0], 16),
    pure(r"shape \[2, 3, 16, 16\]; give \[B, 16, 16, 3\]", check_images, IMAGES.transpose(0, 3, 1, 2), 16),
    ("at most 24", lambda place: place.clip.tokenize(["a photo of a cat " * 6])),
    labelled("the label 'cow' is no class", ["cow"]),
    labelled(r"labels are \[\['a'\], \['a', 'b'\]\]; give numbers or names", [["a"], ["a", "b"]]),
    ("texts is None; give a list of texts", lambda place: place.clip.encode_texts(None)),
    (f"{NO_TYPE} auto, float32,", lambda place: place.clip.encode_texts(["x"], dtype="float16")),
    pure("dtype 'tensorfloat32' needs a .* choose 'auto'", resolve, "tensorfloat32", "tpu"),
    # Changes of a model.
    *(bias("vision", *shape) for shape in ((3, 3, 24), (3, 23), (2, 2, 24))),
    bias("text", 3, 15),
    weights("expected [3, 3, 24, r", qkv=PAIR),
    folded("only biases and other changes of", vision_bias=np.ones((3, 24)), vision_prompts=np.ones((3, 1, 24))),
]
