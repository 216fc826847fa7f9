"""The model card: valid front matter, the adapter's facts."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import ExifTags, Image

from clipbias.clip import Clip
from clipbias.clip.preprocess import Preprocessing
from clipbias.data.transforms import Resizing
from clipbias.export import FORMS, export
from clipbias.export.card import model_card
from clipbias.tuned_model import TunedModel
from tests.export import models


def test_the_front_matter_is_what_the_hub_reads(clip, tmp_path):
    of_hub = dataclasses.replace(clip, name="openai/clip-vit-base-patch16", revision="main")
    data = ModelCard(model_card(models.tuned(of_hub, "bias", tmp_path), "checkpoint")).data
    assert (data.base_model, data.library_name) == (of_hub.name, "transformers")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("pets", "accuracy", 75.0)


def test_the_facts(clip, tmp_path):
    tuned = models.tuned(clip, "bias", tmp_path)
    text = model_card(tuned, "checkpoint")
    assert "base_model" not in text.split("---\n")[1]  # a folder of this machine is no model of the hub
    for fact in (
        "| method | `bias` (vision_tower=True, text_tower=True) |",
        "| dataset | pets, 3 classes |",
        "| top-1 accuracy | 75.00 % |",
        "| learnable parameters | 120 (vision 72, text 48) |",
        clip.fingerprint,
    ):
        assert fact in text


def test_a_card_has_the_true_counts(clip, tmp_path):
    notes = {"shots": 16, "train_images": 38, "images_per_class": [6, 16], "accuracy": 100 * 11 / 12, "images": 12}
    tuned = models.tuned(clip, "coop", tmp_path)
    text = model_card(dataclasses.replace(tuned, notes=notes), "adapter")
    assert "| training images | 38, 6 to 16 images per class |" in text
    for shots, words in ((16, " drawn with seed 2."), (None, ".")):  # all images are not drawn
        other = dataclasses.replace(tuned, notes=notes | {"seed": 2, "shots": shots})
        assert f"were tuned, on 6 to 16 images per class{words}" in model_card(other, "adapter")
    assert "| top-1 accuracy | 91.67 % of 12 test images (95 % interval 64.6 to 98.5) |" in text
    notes = {"accuracies": {"base": 80.0, "new": 70.0}, "tested_images": {"base": 500, "new": 50}}
    text = model_card(dataclasses.replace(tuned, notes=notes), "adapter")
    assert "(base) | 80.00 % of 500 test images |" in text and "(new) | 70.00 % of 50 test images (95 % int" in text


@pytest.mark.parametrize("notes", [{}, {"accuracy": None, "shots": None}])
def test_whatever_notes_an_adapter_has(clip, tmp_path, notes):
    text = model_card(dataclasses.replace(models.tuned(clip, "coop", tmp_path), notes=notes), "head")
    assert "model-index" not in yaml.safe_load(text.split("---\n")[1])


EVIL = "x\r\n---\nlicense: evil\n---\n# <script>alert(1)</script> | [a](javascript:b) `c` \x1b[31m \ud800"


def test_a_card_says_harmlessly_what_a_hostile_file_holds(tiny, tmp_path):
    names = (EVIL.replace("\ud800", ""), "b")  # which no tokenizer reads
    clip = dataclasses.replace(tiny(context_length=96)[0], name=EVIL)
    tuned = models.tuned(clip, "bias", tmp_path).with_classes(names)
    notes = dict.fromkeys(("dataset", "protocol", "mine"), EVIL) | {EVIL: EVIL}
    text = model_card(dataclasses.replace(tuned, notes=notes), "adapter")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "license" not in yaml.safe_load(front)
    assert "\x1b" not in text and "\ud800" not in text and not {"---", "license: evil"} & {*body.splitlines()}
    words = re.sub(r"(?<!\\)`[^`]*`", "", body.partition("## Use")[0])  # in code nothing is a tag or a link
    assert not re.search(r"(?<!\\)[<\[`]", words), words


@pytest.mark.ci
def test_the_cards_code_with_clipbias(clip, tmp_path, capsys):
    tuned = models.tuned(clip, "bias", tmp_path)
    export(tuned, tmp_path / "out")
    (image,) = models.pictures(clip, 1)
    models.run_card(tmp_path / "out", image, block=-1)
    likely = models.CLASS_NAMES[int(models.logits(tuned, image[None]).argmax())]
    assert capsys.readouterr().out.startswith(f"{likely} ")


LEVELS = np.random.default_rng(0).integers(0, 256, (23, 28, 4), np.uint8)  # of 16 x 19 pixels 1.5 go at each side
RGB = Image.fromarray(LEVELS[..., :3])
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
# Pictures of all kinds, with the options that save them.
KINDS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "plain": (RGB, {}),
    "16 bits": (Image.fromarray(257 * LEVELS[..., 0].astype(np.uint16) // 3), {}),
    "transparent": (Image.fromarray(LEVELS), {}),
    "grey and transparent": (Image.fromarray(LEVELS).convert("LA"), {}),
    "palette": (RGB.quantize(16), {"transparency": 3}),
    "CMYK": (RGB.convert("CMYK"), {"format": "TIFF"}),
    "turned": (RGB, {"exif": TURNED}),
}


@pytest.fixture(params=["open_clip", "transformers"])
def of_library(clip: Clip, request: pytest.FixtureRequest) -> Clip:
    """A model whose pictures are resized as a library does."""
    preprocessing = Preprocessing(Resizing(clip.preprocessing.image_size, library=request.param))
    return dataclasses.replace(clip, preprocessing=preprocessing)


@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_every_card_makes_the_pixels_of_the_model(of_library, form, tmp_path):
    card = model_card(models.tuned(of_library, "clip_lora", tmp_path), form)
    # The lines on the picture need neither torch nor open_clip.
    code = re.search(r"image = ImageOps.*?(?=\nwith torch|\nlogits|\n\(logits|\npixels = Auto)", card, re.DOTALL)
    for picture, options in KINDS.values():
        picture.save(path := tmp_path / "image.png", **options)
        variables: dict[str, Any] = {"np": np, "Image": Image}
        exec("from PIL import ImageOps\n" + code[0].replace("image.png", str(path)), variables)
        normalised = of_library.preprocess([path])
        levels = of_library.preprocessing.levels(normalised)[0]
        np.testing.assert_array_equal(np.asarray(variables["image"]), levels)
        if form == "open_clip":
            np.testing.assert_allclose(variables["pixels"], normalised[0], atol=1e-5)
    Image.fromarray(np.full((20, 20), 70_000, np.int32)).save(path, format="TIFF")
    with pytest.raises(AssertionError, match="convert levels of 32 bits"):
        exec(code[0].replace("image.png", str(path)), variables)


@pytest.mark.ci
@pytest.mark.parametrize("form", ["program", "onnx"])
def test_the_code_of_a_card_predicts_as_the_model(of_library: Clip, form: str, tmp_path: Path) -> None:
    model = TunedModel.of(models.tuned(of_library, "ivlp", tmp_path))
    export(model, out := tmp_path / "out", form=form)
    for picture, options in KINDS.values():
        logits = models.run_card(out, picture, **options)["logits"]
        models.assert_close(logits, model.predict([out / "image.png"]).logits, 1e-4)
