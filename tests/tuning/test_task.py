"""Tasks and adapter files: what is counted, stored, refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import clipbias
from clipbias.clip import Clip, ClipConfig, TextConfig, VisionConfig
from clipbias.errors import ClipbiasError
from clipbias.tuning import parameter_count
from tests import helpers


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("tiny")
    helpers.tiny_checkpoint(folder)
    return clipbias.load(folder)


VIT_B_16 = ClipConfig(
    VisionConfig(768, 12, 12, 3072, image_size=224, patch_size=16),
    TextConfig(512, 12, 8, 2048, vocabulary_size=49408, context_length=77, eos_token_id=49407),
    512,
)


@pytest.mark.parametrize(
    ("method", "count"), [("bias", 15_360), ("ivlp_matched", 15_360), ("maple", 3_555_072), ("coop", 2_048)]
)
def test_parameter_counts_of_vit_b_16(clip: Clip, method: str, count: int) -> None:
    import dataclasses

    text = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    large = dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": text})
    task = clipbias.Task(large, method, ("cat", "dog"))
    assert parameter_count(task.shapes)["total"] == count


@pytest.mark.parametrize("method", ["bias", "coop", "ivlp", "maple", "taskres", "vpt", "zero_shot"])
def test_an_adapter_comes_back(clip: Clip, tmp_path: Path, method: str) -> None:
    task = clipbias.Task(clip, method, ("cat", "dog"), template="a {}.")
    learnables = task.init(seed=3)
    clipbias.save_adapter(tmp_path / "a.safetensors", task, learnables, method=method, notes={"accuracy": 1.5})
    adapter = clipbias.load_adapter(tmp_path / "a.safetensors")
    again = adapter.task(clip)
    assert (again.method, again.class_names, again.template) == (task.method, task.class_names, task.template)
    assert adapter.notes == {"accuracy": 1.5}
    jax.tree.map(np.testing.assert_array_equal, dict(learnables), dict(adapter.learnables))
    if method == "taskres":
        with pytest.raises(ClipbiasError, match="cannot be used with other class names"):
            adapter.task(clip, ("a", "b", "c"))
    else:
        assert len(adapter.task(clip, ("a", "b", "c")).texts) == 3


def test_files_that_are_no_adapters(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(ClipbiasError, match="no adapter file"):
        clipbias.load_adapter(tmp_path / "none")
    save_file({"a": np.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ClipbiasError, match="is not a clipbias adapter"):
        clipbias.load_adapter(tmp_path / "plain")
    save_file({"a": np.zeros(1)}, tmp_path / "later", metadata={"clipbias": json.dumps({"format": 99})})
    with pytest.raises(ClipbiasError, match="has format 99"):
        clipbias.load_adapter(tmp_path / "later")
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    with pytest.raises(ClipbiasError, match="damaged"):
        clipbias.load_adapter(tmp_path / "junk")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "no class names"),
        (("cat", " "), {}, "class 1 has an empty name"),
        (("cat",), {"template": "no place"}, "must contain '{}' exactly once"),
        (("cat " * 30,), {}, "this model reads at most 24"),
    ],
)
def test_names_that_cannot_be_used(clip: Clip, names: tuple, options: dict, message: str) -> None:
    with pytest.raises(ClipbiasError, match=message):
        clipbias.Task(clip, "zero_shot", names, **options)
