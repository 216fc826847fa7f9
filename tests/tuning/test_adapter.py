"""Adapter files: what comes back, other class names, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning import CONSTANTS, make_method
from clipbias.tuning.adapter import Adapter, read_adapter, write_adapter
from clipbias.tuning.method import flatten
from clipbias.tuning.methods.ivlp import IVLP
from clipbias.tuning.tuned import Tuned


def saved(clip: Clip, path: Path, method: str, **options) -> Tuned:
    """A model of two classes, written and read back."""
    task = clipbias.Task(clip, method, ("cat", "dog"), template="a {}.", **options)
    write_adapter(path, Tuned(task, task.init(seed=3), {"accuracy": 1.5}))
    return read_adapter(path).bind(clip)


@pytest.mark.parametrize(("method", "options"), [("taskres", {}), ("coop", {"class_specific": True})])
def test_what_belongs_to_classes_is_refused_for_others(clip, tmp_path, method, options):
    """As many other classes, too: rows would be given to the wrong classes."""
    model = saved(clip, tmp_path / "a.safetensors", method, **options)
    with pytest.raises(ClipbiasError, match=r"cannot be used with other classes such as 'bird'; tune it on them"):
        model.with_classes(("bird", "horse"))


def cached(clip: Clip, **change) -> tuple[clipbias.Task, dict]:
    """A task whose method holds a cache, and the cache of four images, of which arrays may be replaced."""
    task = clipbias.Task(clip, "tests.own_methods:Cache", ("cat", "dog", "bird"))
    keys = np.random.default_rng(0).normal(size=(4, clip.config.projection_width)).astype(np.float32)
    held = {"keys": keys, "labels": np.array([2, 1, 0, 1], np.int32), "strength": np.float32(3)}
    return task, {CONSTANTS: held | change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.full((4, 12), np.nan, np.float32)}, "'constants/keys' has values that are not finite numbers"),
        ({"labels": np.zeros(4, np.float32)}, "'constants/labels' holds float32 and not int32"),
        ({"strength": np.int32(3)}, "'constants/strength' holds int32 and not float32"),
        ({"keys": np.zeros((4, 11), np.float32)}, r"'constants/keys': \(4, 11\).* are not those of method"),
        ({"more": np.zeros(1)}, "'constants/more'.* are not those of method"),
    ],
)
def test_damaged_constants(clip, tmp_path, change, message):
    """They are not written, and a file that holds them is refused."""
    path = tmp_path / "a.safetensors"
    task, learnables = cached(clip)
    write_adapter(path, Tuned(task, learnables))
    types = {name: leaf.dtype.name for name, leaf in read_adapter(path).learnables[CONSTANTS].items()}
    assert types == {"keys": "float32", "labels": "int32", "strength": "float32"}
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    damaged = cached(clip, **change)[1]
    with pytest.raises(ClipbiasError, match="do not belong to Cache" if "more" in change else message):
        write_adapter(path, Tuned(task, damaged))
    save_file({name: np.asarray(leaf) for name, leaf in flatten(damaged).items()}, path, metadata=metadata)
    with pytest.raises(ClipbiasError, match=message):
        read_adapter(path).bind(clip, own_methods=["tests.own_methods"])


def test_an_adapter_knows_the_name_that_its_method_is_made_by(clip, tmp_path):
    program = tmp_path / "own.py"
    program.write_text("from clipbias.tuning.methods.bias import BiasTuning\nclass Own(BiasTuning):\n    pass\n")

    def written(method: Any) -> Adapter:
        task = clipbias.Task(clip, method, ("cat", "dog"))
        write_adapter(tmp_path / "a.safetensors", Tuned(task, task.init()))
        return read_adapter(tmp_path / "a.safetensors")

    for method, name in ((make_method("ivlp_matched"), "ivlp_matched"), (IVLP(), "ivlp")):
        assert written(method).method == name and written(method).bind(clip).task.method == method
    for method in (str(program), f"{program}:Own", make_method(str(program))):
        adapter = written(method)
        assert adapter.method.partition(":")[0] == str(program)
        for own_methods in ([str(program)], str(program)):
            assert type(adapter.bind(clip, own_methods=own_methods).task.method).__name__ == "Own"

    class Local(IVLP):
        pass

    with pytest.raises(ClipbiasError, match="the method 'Local' cannot be made again; put its class in a file"):
        written(Local())
