"""Which form an adapter gets, what is refused, and what stands in every folder."""

from pathlib import Path

import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.export import export, natural_form
from clipbias.tuning import Task
from tests.export import models


@pytest.mark.parametrize(
    ("method", "options", "form"),
    [
        ("bias", {}, "checkpoint"),
        ("bias", {"vision_tower": False}, "checkpoint"),
        ("bias_by_kind", {}, "program"),
        ("bias_by_kind", {"vision_tower": False}, "head"),
        ("zero_shot", {}, "head"),
        ("coop", {}, "head"),
        ("taskres", {}, "head"),
        ("ivlp", {"vision_tokens": 0}, "head"),
        ("ivlp", {}, "program"),
        ("vpt", {}, "program"),
        ("maple", {}, "program"),
        ("tests.own_methods:Projection", {}, "checkpoint"),
        ("tests.own_methods:Everything", {}, "program"),
        ("tests.own_methods:Head", {}, "program"),
        ("tests.own_methods:Cache", {}, "program"),
    ],
)
def test_the_natural_form(clip: Clip, method: str, options: dict, form: str) -> None:
    task = Task(clip, method, models.CLASS_NAMES, **options)
    assert natural_form(task, task.shapes) == form


def test_the_adapter_file_is_in_the_folder_byte_for_byte(clip: Clip, tmp_path: Path) -> None:
    adapter = models.adapter(clip, "taskres", tmp_path)
    export(adapter, clip, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "adapter.safetensors", "classifier.safetensors"]
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "form", "message"),
    [
        (
            "vpt",
            "checkpoint",
            "'vpt' is not changes of weights alone and cannot be folded into a checkpoint; export it as a program",
        ),
        ("bias_by_kind", "checkpoint", "'bias_by_kind' has a bias that differs between tokens and cannot be folded"),
        ("vpt", "head", "'vpt' changes the image features.*; export it as a program"),
        ("bias", "head", "'bias' changes the image features.*; export it as a checkpoint"),
        ("coop", "checkpoint", "export it as a head"),
        (
            "tests.own_methods:Probe",
            "head",
            "Probe' has a head of its own, which a file of class features cannot hold; exp",
        ),
        ("tests.own_methods:Cache", "checkpoint", "Cache' has a head of its own, which a checkpoint cannot hold"),
        ("tests.own_methods:Everything", "checkpoint", "Everything' is not changes of weights alone.*as a program"),
        ("tpt_coop", "program", "'tpt_coop' learns of each test image, which no exported file does"),
        ("coop", "onnx", "unknown form 'onnx'; choose from checkpoint, head, program, peft"),
    ],
)
def test_forms_that_a_method_does_not_take(clip: Clip, tmp_path: Path, method: str, form: str, message: str) -> None:
    adapter = models.adapter(clip, method, tmp_path)
    with pytest.raises(ClipbiasError, match=message):
        export(adapter, clip, tmp_path / "out", form=form, own_methods=(method,))
    assert not (tmp_path / "out").exists()


def test_a_base_in_half_precision_and_a_full_folder_are_refused(clip: Clip, model: Path, tmp_path: Path) -> None:
    adapter = models.adapter(clip, "bias", tmp_path)
    with pytest.raises(ClipbiasError, match="load it in float32"):
        export(adapter, clipbias.load(model, dtype="bfloat16"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(ClipbiasError, match="exists already"):
        export(adapter, clip, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
