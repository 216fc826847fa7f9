"""Wrong methods, options, texts of classes, arguments and changes of a tower; damaged files of adapters."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip import Adaptation, encode_image, encode_text
from clipbias.tuning import Task, make_method, read_descriptions
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.registry import match_user_method
from clipbias.tuning.tuned import Tuned
from tests import families
from tests.bad_files import NO_OBJECT, cut
from tests.tuning.heads_common import LABELS, make_samples
from tests.tuning.test_registry import CLASS
from tests.wrong_inputs.place import Case, Place, case, pure, zeros

OPEN_CLIP = Path(__file__).parents[1] / "data_files" / "formats" / "open_clip"
IMAGES = np.zeros((1, 16, 16, 3), np.float32)
CONTEXT = CLASS.replace("return {}", 'return {"text_context": clip.params["text"]["position_embedding"][:2]}').replace(
    "Adaptation()", "Adaptation(**learnables)"
)
OPTIONS = {"mmrl": {"tokens": 3, "blocks": 2}, "mma": {"blocks": 2}, "tcp": {"block": 2}}  # of `adapted`
NAMED = r"(?s)^(?!.*\n)(?=.*/texts\.json).*"  # in one line, with its place
SWAPPED = "the first argument is not the frozen weights; give clip.params, then the learnables"

made = case(lambda place, name, **options: make_method(name, **options))
bound = case(lambda place, names, method="zero_shot", **options: place.task(method, names, **options))
lacking = case(lambda place, family, method: Task(families.load_first(family), method, families.CLASSES))
crops = case(lambda place, images: (task := place.task("tpt", crops=11)).logits(place.clip.params, task.init(), images))
swapped = case(lambda place, call: call(*place.learned()))


@case
def in_x64(place: Place) -> None:
    with jax.enable_x64(True):
        place.task("bias")


@case
def losing(place: Place, labels: Any, *, traced: bool = False) -> None:
    """The loss of two images of two classes."""
    task, params, learnables = place.learned()
    arguments = (params, learnables, np.zeros((2, 16, 16, 3), np.float32), labels)
    if traced:
        jax.eval_shape(task.loss, *arguments)
    else:
        task.loss(*arguments)


@case
def program(place: Place, text: str, inside: str = "") -> None:
    """A method of a user's own."""
    (place.tmp_path / "own.py").write_text(text)
    place.task(f"{place.tmp_path / 'own.py'}{inside}")


@case
def described(place: Place, content: str) -> None:
    """A file of texts of classes."""
    (place.tmp_path / "texts.json").write_text(content)
    descriptions = read_descriptions(place.tmp_path / "texts.json")
    place.task("zero_shot", ("cat", "maine_coon"), descriptions=descriptions)


@case
def adapted(place: Place, tower: str, method: str, change: Callable[[Adaptation], Any], **options: Any) -> None:
    """A tower under the changes that a method begins with, some of them replaced."""
    task = place.task(method, **OPTIONS.get(method, {}))
    clip = place.clip
    adaptation = task.method.adapt_in_training(zeros(task), jax.random.key(0))
    encode, inputs = (encode_text, task.tokens) if tower == "text" else (encode_image, IMAGES)
    encode(clip.params, clip.config, inputs, dataclasses.replace(adaptation, **change(adaptation)), **options)


def fewer_rates(adaptation: Adaptation) -> dict[str, Any]:
    changes = adaptation.text_weights["layers"]["qkv"]
    return {"text_weights": {"layers": {"qkv": {**changes, "rate": changes["rate"][:2]}}}}


@case
def without_an_image(place: Place, method: str) -> None:
    samples = dataclasses.replace(make_samples(place.clip), labels=np.where(LABELS == 1, 0, LABELS))
    make_method(method).support({"bias": np.zeros(3)}, samples)


@case
def header(place: Place, text: str | None) -> None:
    """A file with this header."""
    save_file({"a": np.zeros(1)}, place.tmp_path / "a", metadata=None if text is None else {"clipbias": text})
    read_adapter(place.tmp_path / "a")


@case
def arrays(place: Place, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """An adapter's file with other arrays."""
    path = place.adapter()
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata=metadata)
    read_adapter(path).bind(place.clip)


@case
def damaged(place: Place, how: str) -> None:
    path = place.adapter("ivlp")
    path.write_bytes(cut(path.read_bytes())[how])
    read_adapter(path)


@case
def unsaved(place: Place, learnables: Any = 0.0, notes: Any = None) -> None:
    """An earlier file stays where these are not written; a number fills arrays of the right shape."""
    task = place.task()
    path = place.tmp_path / "a.safetensors"
    if not isinstance(learnables, dict):
        learnables = {name: np.full(leaf.shape, learnables, type(learnables)) for name, leaf in task.shapes.items()}
    path.write_text("earlier")
    try:
        write_adapter(path, Tuned(task, learnables, notes or {}))
    finally:
        assert path.read_text() == "earlier"


@case
def calibrated(place: Place, name: str, value: float) -> None:
    """A file with scores of three calibration images, of which one kind is replaced."""
    scores = {score: np.full(3, 0.5) for score in ("nonconformity", "max_logit", "mcm", "energy")}
    scores |= {"scale": np.asarray(14.0)}
    scores[name] = np.full_like(scores[name], value)
    whole = {f"calibration/{score}": array for score, array in scores.items()}
    arrays("", lambda tensors: tensors | whole)[1](place)


BIASES = {f"{tower}_bias": np.zeros((1, 24), np.float32) for tower in ("vision", "text")}  # of other towers
SIZES: dict[str, Any] = {"nonconformity": 3, "max_logit": 2, "mcm": 2, "energy": 2, "scale": ()}
CASES: list[Case] = [
    in_x64("jax_enable_x64 is on, .* make its calls within `with jax.enable_x64.False.:`"),
    # Methods and their options.
    *(
        made(f"unknown method '{re.escape(given)}'; did you mean '{name}'", given)
        for given, name in {"CoOp": "coop", "LP++": "lp_plus_plus", "bias tuning": "bias"}.items()
    ),
    made("unknown method 'finetune'; there are zero_shot, coop, ", "finetune"),
    *(
        made(f"'bias' has no option '{given}'; did you mean '{name}', an option of fit and train", "bias", **{given: 1})
        for given, name in {"lr": "learning_rate", "max_epochs": "epochs", "bs": "batch_size"}.items()
    ),
    made("no option 'device'; it takes text_tower, vision_tower", "bias", device="cpu"),
    made("no option 'device'; it takes text_tower, vision_tower", "bias", device=None),
    made("'depth' of method 'ivlp' is 0; it must be a whole number from 1 to 1,000, or None", "ivlp", depth=0),
    made("no file 'nowhere.py'", "nowhere.py"),
    made("cannot import the method's module 'no.such.module'", "no.such.module"),
    made("choose from out, fc1, fc2, norm1, norm2, outer_norms, qkv", "bitfit", only=("fc3",)),
    made("none may be empty", "plot_plus_plus", phrases=("a photo of a", "")),
    made("cannot be taken 5 at a time", "proda", sets_per_step=5),
    made("does not end with the class name", "prograd", template="{} texture."),
    ("unknown templates 'nowhere'", lambda place: make_method("tip_adapter", templates="nowhere").text("a {}.", None)),
    program("'Other' is not a subclass", CLASS, ":Other"),
    program(r"own\.py' defines no subclass of clipbias\.tuning\.Method; write one", ""),
    program("has the hook 'sampling'; derive it from tuning.FeatureMethod", f"{CLASS}    sampling = print"),
    program(r"text_context have 2 tokens, but its text\(\) keeps 0 places", CONTEXT),
    pure(r"may be mine/a\.py or yours/a\.py", match_user_method, "theirs/a.py", ("mine/a.py", "yours/a.py")),
    bound("'clip_lora' has nothing to learn with these options", ("cat",), "clip_lora", parts=(), first_block=2),
    # Classes and their texts.
    bound("no class names", ()),
    bound("the method is .*ZeroShot.*; give its name, or an object of its", ("cat",), type(make_method("zero_shot"))),
    bound("class_names is {'cat'}; give a list of names", {"cat"}),  # whose order differs between processes
    bound("reads the class names 'big cat' and 'big_cat' as the same text", ("big cat", "dog", "big_cat")),
    bound("the class name 'cat' occurs 2 times; give each class a name of its own", ("cat", "dog", "cat")),
    bound("must contain '{}' exactly once", ("cat",), template="no place"),
    bound("or texts of your own, not both", ("a dog",), free_text=True, descriptions={"a dog": ["It barks."]}),
    bound("'cat' and 'dog' have the same des", ("cat", "dog"), descriptions={"cat": ["a pet"], "dog": ["a pet"]}),
    bound("the class name 5 is not a string", ("a dog", 5), free_text=True),
    bound("blocks 4 to 3 are to be tuned, and the vision tower has blocks 1 to", ("cat",), "clip_lora", first_block=4),
    described(rf"{NAMED}not valid JSON", "{"),
    described("'cat' occurs twice in an object", '{"cat": ["a"], "cat": ["b"], "maine_coon": ["c"]}'),
    described(rf"{NAMED}name the class 'maine coon' twice", '{"maine_coon": ["a"], "cat": ["b"], "maine coon": ["c"]}'),
    described(rf"{NAMED}have no texts for the class 'maine_coon'", '{"cat": ["a"], "dog": ["a"]}'),
    described(rf"{NAMED}tokens for the class 'cat'", json.dumps({"cat": ["photo " * 100], "maine coon": ["a"]})),
    lacking("features of patches, which a model with a pooling head has not", "siglip_2", "plot"),
    lacking("no weight of this tower", "siglip_2", "prolip"),
    # Arguments, images and changes of a tower.
    swapped(SWAPPED, lambda task, params, learnables: jax.jit(task.logits)(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda task, params, learnables: task.class_features(learnables, params)),
    swapped(SWAPPED, lambda task, params, learnables: task.logits(task.clip, learnables, IMAGES)),
    swapped(
        "the learnables do not belong to", lambda task, params, learnables: task.image_features(params, None, IMAGES)
    ),
    losing(r"there are 2 images and labels of shape \[1\]; give the number of its class for each image", np.array([1])),
    losing("labels go from -1 to 1; there are 2 classes, from 0 to 1", np.array([-1, 1])),
    losing(r"labels are float64 \[2\]; give whole numbers", np.array([0.0, 1.0])),
    crops(r"TPT learns from 11 crops of each image.*\[B, 12, R, R, 3\]", IMAGES),
    (
        "the texts of CoCoOp depend on the image",
        lambda place: place.task("cocoop").class_features(place.clip.params, zeros(place.task("cocoop"))),
    ),
    without_an_image(r"no training image has the label 1 of 3 .from 0.", "gda"),
    adapted(
        "attention differs in size between blocks",
        "vision",
        "mmrl",
        lambda x: {"vision_readout": None},
        observe=lambda view: view.index,
    ),
    adapted(r"vision_tokens have shape \(2, 3, 16\)", "vision", "mmrl", lambda x: {"vision_tokens": x.text_tokens}),
    adapted(
        r"text_class_prompts have shape \(1, 4, 16\); expected \[2, T, 16\]",
        "text",
        "tcp",
        lambda x: {"text_class_prompts": x.text_class_prompts[:1]},
    ),
    adapted(r"text_adapters have 'down' of shapes", "text", "mma", lambda x: {"text_adapters": x.vision_adapters}),
    adapted(r"layers/qkv/rate of shape \(2,\); expected \(3,\)", "text", "clip_lora", fewer_rates),
    # Files of adapters.
    ("no adapter file", lambda place: read_adapter(place.tmp_path / "none")),
    *(header("is not a clipbias adapter", text) for text in (None, *NO_OBJECT)),
    header("a is damaged: the adapter's method is None; it must be a string", '{"format": 2, "class_names": ["a"]}'),
    header("has format 99; this clipbias reads format 2", '{"format": 99}'),
    arrays("are not those of method 'bias'", lambda tensors: BIASES),
    arrays(
        r"is damaged: the scores of calibration images have shapes \[\(3,\), \(2,\)",
        lambda tensors: tensors | {f"calibration/{name}": np.zeros(size) for name, size in SIZES.items()},
    ),
    *(
        calibrated(
            rf"is damaged: the {name} of calibration images .*{re.escape(f'{value:g}')}; .*; calibrate the model again",
            name,
            value,
        )
        for name, value in (
            *(("nonconformity", -0.5), ("nonconformity", 3.0), ("mcm", 1.5)),
            *(("scale", 0.0), ("scale", 1e300), ("max_logit", np.inf), ("energy", np.nan)),
        )
    ),
    *(damaged(r"a\.safetensors is damaged or incomplete", how) for how in cut(b"")),
    unsaved("are not those of method 'bias'", BIASES),
    unsaved("'(text|vision)_bias' has values that are not finite numbers", np.float32(np.nan)),
    unsaved("'(text|vision)_bias' holds int64 and not float32, as method 'bias' has it", np.int64(1)),
    unsaved(r"must be JSON values \(Object of type float32 .*\); convert them", notes={"mine": np.float32(3)}),
    (
        r"x\.pt is no name of an adapter's file; give a path that ends with \.safetensors",
        lambda place: place.tuned().save(place.tmp_path / "x.pt"),
    ),
    unsaved("accuracy is 'good'; it must be a finite number", notes={"accuracy": "good"}),
    (
        "learned something for each class and cannot be used with other classes",
        lambda place: place.tuned("taskres").with_classes(("a dog.",), free_text=True),
    ),
    ("does not fit .*; load its own base", lambda place: read_adapter(place.adapter()).bind(clipbias.load(OPEN_CLIP))),
]
