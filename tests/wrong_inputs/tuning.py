"""Wrong methods, options and texts of classes, swapped arguments, and changes that fit no tower."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias.clip import Adaptation, encode_image, encode_text
from clipbias.tuning import Task, make_method, read_descriptions
from clipbias.tuning.prompts import choose_templates
from clipbias.tuning.registry import match_user_method
from tests import families
from tests.tuning.heads_common import LABELS, make_samples
from tests.tuning.test_registry import CLASS
from tests.wrong_inputs.place import Case, Place, case, pure, zeros

IMAGES = np.zeros((1, 16, 16, 3), np.float32)
CONTEXT = CLASS.replace("return {}", 'return {"text_context": clip.params["text"]["position_embedding"][:2]}').replace(
    "Adaptation()", "Adaptation(**learnables)"
)
POOLED = ("siglip_2", "pe")
OPTIONS = {"mmrl": {"tokens": 3, "blocks": 2}, "mma": {"blocks": 2}, "tcp": {"block": 2}}  # of `adapted`
NAMED = r"(?s)^(?!.*\n)(?=.*/texts\.json).*"  # in one line, with its place
SWAPPED = "params and learnables are swapped: the order is the frozen weights"

made = case(lambda place, name, **options: make_method(name, **options))
bound = case(lambda place, names, method="zero_shot", **options: place.task(method, names, **options))
lacking = case(lambda place, family, method: Task(families.load_first(family), method, families.CLASSES))
crops = case(lambda place, images: place.task("tpt", crops=11).logits(place.clip.params, {}, images))
swapped = case(lambda place, call: call(*place.learned()))


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


CASES: list[Case] = [
    # Methods and their options.
    made("unknown method 'bais'; did you mean 'bias'", "bais"),
    made("no option 'deptth'; did you mean 'depth'", "ivlp", deptth=1),
    made("option 'depth' of method 'ivlp' is {}; it must be a number", "ivlp", depth={}),
    made("'depth' of method 'ivlp' is 0; it must be a whole number from 1 to 1,000, or None", "ivlp", depth=0),
    made("'text_depth' of method 'ivlp' is 0; it must be a whole number from 1", "ivlp", text_depth=0),
    made("'depth' of method 'maple' is None; it must be a whole number from 1 to 1,000", "maple", depth=None),
    made("'depth' of method 'maple' is 0; it must be a whole number from 1", "maple", depth=0),
    made("'last_block' of method 'clip_lora' is 0; it must be a whole number from 1", "clip_lora", last_block=0),
    made("no file 'nowhere.py'", "nowhere.py"),
    made("cannot import the method's module 'no.such.module'", "no.such.module"),
    made("neither tower is tuned", "layer_norm", towers=()),
    made("choose from out, fc1, fc2, norm1, norm2, outer_norms, qkv", "bitfit", only=("fc3",)),
    made("no kernel is changed", "clip_lora", parts=()),
    made("neither tower is tuned", "clip_lora", towers=()),
    made("'strength' of method 'prolip' is -1", "prolip", strength=-1),
    made("none may be empty", "plot_plus_plus", phrases=("a photo of a", "")),
    made("cannot be taken 5 at a time", "proda", sets_per_step=5),
    made("does not end with the class name", "prograd", template="{} texture."),
    made("'template' of method 'prograd' is ''; it must be a text that is not empty, or None", "prograd", template=""),
    made("'share' of method 'tpt' is 2.0", "tpt", share=2.0),
    made("'crops' of method 'tpt' is 0", "tpt", crops=0),
    made("'steps' of method 'tpt' is 0", "tpt", steps=0),
    made("'alpha' of method 'tip_adapter' is -1.0", "tip_adapter", alpha=-1.0),
    made(r"'beta' of method 'tip_adapter' is 1e\+300", "tip_adapter", beta=1e300),
    ("unknown templates 'nowhere'", lambda place: make_method("tip_adapter", templates="nowhere").text("a {}.", None)),
    ("unknown templates 'imagnet'", lambda place: choose_templates("imagnet", "{} texture.")),
    program("'Other' is not a subclass", CLASS, ":Other"),
    program(r"own\.py' defines no subclass of clipbias\.tuning\.Method; write one", ""),
    program("defines no subclass", "def init(rng, clip, class_names):\n    return {}\n"),
    program("has the hook 'sampling'; derive it from tuning.FeatureMethod", f"{CLASS}    sampling = print"),
    program("has the hook 'at_test'; derive it from tuning.TestTimeMethod", f"{CLASS}    at_test = print"),
    program(r"text_context have 2 tokens, but its text\(\) keeps 0 places", CONTEXT),
    pure(r"may be x/a\.py or y/a\.py", match_user_method, "a.py", ("x/a.py", "y/a.py")),
    pure(r"may be mine/a\.py or yours/a\.py", match_user_method, "theirs/a.py", ("mine/a.py", "yours/a.py")),
    pure("name it yourself", match_user_method, "mine/a.py", ("mine/b.py",)),
    pure("name it yourself", match_user_method, "package.own", ("other.own",)),
    # Classes and their texts.
    bound("no class names", ()),
    bound("class_names is the text 'cat'; give a list of names", "cat"),
    bound("class_names is 5; give a list of names", 5),
    bound("class_names is None; give a list of names", None),
    bound(r"class_names is \{'cat': 1\}; give a list of names", {"cat": 1}),
    bound("reads the class names 'big cat' and 'big_cat' as the same text", ("big cat", "dog", "big_cat")),
    bound("reads the class names 'cat' and 'Cat' as the same text", ("cat", "Cat")),
    (
        "reads the class names 'cat' and 'Cat' as the same text",
        lambda place: place.task("bias").with_classes(["cat", "Cat"]),
    ),
    ("'cat' occurs 2 times", lambda place: place.task("bias").with_classes(["cat", "cat"])),
    bound("the class name 'cat' occurs 2 times; give each class a name of its own", ("cat", "dog", "cat")),
    pure("the first argument is 'demo' and no model; give what clipbias.load", Task, "demo", "bias", ("cat", "dog")),
    bound("class 1 has an empty name", ("cat", " ")),
    bound("must contain '{}' exactly once", ("cat",), template="no place"),
    bound("this model reads at most 24", ("cat " * 30,)),
    bound(
        "give them or texts of your own, not both", ("a dog",), free_text=True, descriptions={"a dog": ["It barks."]}
    ),
    bound("the class name 5 is not a text", ("a dog", 5), free_text=True),
    bound(
        "blocks 4 to 3 are to be tuned, and the vision tower has blocks 1 to 3", ("cat",), "clip_lora", first_block=4
    ),
    described(rf"{NAMED}not valid JSON", "{"),
    described(rf"{NAMED}texts by class name", '["cat"]'),
    described(rf"{NAMED}have 'a cat' for the class 'cat'; give a list of texts", '{"cat": "a cat"}'),
    described(rf"{NAMED}have no text for the class 'cat'", '{"cat": []}'),
    described(rf"{NAMED}have an empty text for the class 'cat'", '{"cat": ["a", " "]}'),
    described(rf"{NAMED}have no texts for the class 'maine_coon'", '{"cat": ["a"], "dog": ["a"]}'),
    described(rf"{NAMED}tokens for the class 'cat'", json.dumps({"cat": ["photo " * 100], "maine coon": ["a"]})),
    *(lacking("features of patches, which a model with a pooling head has not", name, "plot") for name in POOLED),
    *(lacking("needs a causal text tower", name, "mmrl") for name in ("siglip_2", "biomed_clip", "chinese_clip")),
    lacking("no weight of this tower", "siglip_2", "prolip"),
    lacking(r"tunes the projection of `\[cls\]`, and this model has a pooling head", "pe", "prolip"),
    # Arguments, images and changes of a tower.
    swapped(SWAPPED, lambda task, params, learnables: task.logits(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda task, params, learnables: task.loss(learnables, params, IMAGES, np.zeros(1, int))),
    swapped(SWAPPED, lambda task, params, learnables: jax.jit(task.logits)(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda task, params, learnables: task.class_features(learnables, params)),
    swapped(SWAPPED, lambda task, params, learnables: task.image_features(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda *args: clipbias.relevancy(args[0], *args[:0:-1], IMAGES, np.zeros(1, int))),
    swapped("and no task; the order is task", lambda *args: clipbias.relevancy(args[1], args[0], {}, IMAGES, [0])),
    losing(r"there are 2 images and labels of shape \[1\]; give the number of its class for each image", np.array([1])),
    losing(r"there are 2 images and labels of shape \[1\]; give", np.array([1]), traced=True),
    losing(r"there are 2 images and labels of shape \[2, 2\]; give", np.eye(2, dtype=int), traced=True),
    losing("labels go from -1 to 1; there are 2 classes, from 0 to 1", np.array([-1, 1])),
    losing("labels go from 0 to 7; there are 2 classes, from 0 to 1", jax.numpy.array([0, 7])),
    losing("labels have type float64 and shape", np.array([0.0, 1.0])),
    crops(r"TPT learns from 11 crops of each image.*\[B, 12, R, R, 3\]", IMAGES),
    crops(r"TPT learns from 11 crops of each image.*\[B, 12, R, R, 3\]", np.stack([IMAGES] * 5, 1)),
    (
        "the texts of CoCoOp depend on the image",
        lambda place: place.task("cocoop").class_features(place.clip.params, zeros(place.task("cocoop"))),
    ),
    without_an_image("class 2 of 3 has no training image", "linear_probe"),
    without_an_image("class 2 of 3 has no training image", "gda"),
    without_an_image("class 2 of 3 has no training image", "clap"),
    without_an_image("class 2 of 3 has no training image", "lp_plus_plus"),
    adapted(
        "attention differs in size from block to block",
        "vision",
        "mmrl",
        lambda x: {"vision_readout": None},
        observe=lambda view: view.index,
    ),
    adapted(r"vision_tokens have shape \(2, 3, 16\)", "vision", "mmrl", lambda x: {"vision_tokens": x.text_tokens}),
    adapted("text_tokens stand beside prompts", "text", "mmrl", lambda x: {"text_prompts": np.zeros((1, 3, 16))}),
    adapted("vision_readout reads vision_tokens", "vision", "mmrl", lambda x: {"vision_tokens": None}),
    adapted(
        r"text_class_prompts have shape \(1, 4, 16\); expected \[2, T, 16\]",
        "text",
        "tcp",
        lambda x: {"text_class_prompts": x.text_class_prompts[:1]},
    ),
    adapted("put in at block 0", "text", "tcp", lambda x: {"text_class_block": 0}),
    adapted(
        r"text_adapters have 'down' of shapes \(2, 24, 32\)",
        "text",
        "mma",
        lambda x: {"text_adapters": x.vision_adapters},
    ),
    adapted(r"layers/qkv/rate of shape \(2,\); expected \(3,\)", "text", "clip_lora", fewer_rates),
]
