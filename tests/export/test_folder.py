"""Which form an adapter gets, what is refused, and what stands in every folder."""

import pytest

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
def test_the_natural_form(clip, method, options, form):
    task = Task(clip, method, models.CLASS_NAMES, **options)
    assert natural_form(task, task.shapes) == form


def test_the_adapter_file_is_in_the_folder_byte_for_byte(clip, tmp_path):
    adapter = models.adapter(clip, "taskres", tmp_path)
    export(adapter, clip, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "adapter.safetensors", "classifier.safetensors"]
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()
