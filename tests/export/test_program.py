"""The StableHLO program: the adapter's logits from the files alone, for any batch size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import clipbias
from clipbias.data.transforms import test_image as crop
from clipbias.export import export
from clipbias.export.program import export_program, program_weights
from tests import families, helpers
from tests.export import models

pytestmark = pytest.mark.ci


def test_the_program_in_this_process(clip, tmp_path):
    """Of built-in methods `tests/relations` says it."""
    tuned = models.tuned(clip, "tests.own_methods:Everything", tmp_path)
    export(tuned, tmp_path / "out", form="program")
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "classifier.stablehlo").read_bytes()))
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert not any(name.startswith("text/") for name in weights)
    images = models.pictures(clip)
    expected = models.logits(tuned, images)
    models.assert_close(program.call(weights, images), expected)
    description = json.loads((tmp_path / "out" / "program.json").read_text())
    assert description["class_names"] == list(models.CLASS_NAMES)
    assert description["platforms"] == list(program.platforms) == ["cpu", "cuda", "tpu"]
    assert (tmp_path / "out" / "classifier.stablehlo").stat().st_size < 100_000


@pytest.mark.parametrize("family", helpers.short([*families.FAMILIES], "siglip"))
def test_the_batch_size_is_open_in_every_family(family):
    clip = families.load_first(family)
    task = clipbias.Task(clip, "vpt", models.CLASS_NAMES)
    learnables = models.learned(task)
    weights = program_weights(task, learnables)
    program = export_program(task, weights)
    images = models.pictures(clip)
    logits = models.task_logits(task, learnables, images)
    for count in (4, 1):
        models.assert_close(program.call(weights, images[:count]), logits[:count], 1e-4)


def test_the_same_adapter_gives_the_same_bytes_wherever_it_is_exported(clip, tmp_path):
    """A program says in no file of this machine where an operation stands, whatever JAX is told to note elsewhere."""
    tuned = models.tuned(clip, "vpt", tmp_path)

    def exported(name: str, depth: int) -> bytes:
        if depth:
            return exported(name, depth - 1)
        export(tuned, tmp_path / name, form="program")
        return (tmp_path / name / "classifier.stablehlo").read_bytes()

    setting = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, setting)
    try:
        jax.config.update(setting, 10)
        first = exported("first", 3)
        assert getattr(jax.config, setting) == 10
    finally:
        jax.config.update(setting, before)
    assert first == exported("second", 0)
    assert b".py" not in first and str(Path(clipbias.__file__).parents[1]).encode() not in first


@pytest.mark.long
def test_the_cards_code_in_a_fresh_process_without_clipbias(tmp_path):
    """On the embedded model, whose half-precision weights stay half in the file."""
    demo = clipbias.load("demo")
    tuned = models.tuned(demo, "ivlp", tmp_path)
    out = tmp_path / "out"
    assert export(tuned, out) == "program"
    assert load_file(out / "weights.safetensors")["vision/layers/fc1/kernel"].dtype == np.float16
    picture = np.random.default_rng(1).integers(0, 256, (71, 50, 3), np.uint8)
    Image.fromarray(picture).save(out / "image.png")
    code = models.card_code(out)
    code += "import sys\nassert 'clipbias' not in sys.modules\nnp.save('logits.npy', logits)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=out, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] in models.CLASS_NAMES
    image = crop(picture, demo.preprocessing.resizing)[None]
    models.assert_close(np.load(out / "logits.npy"), models.logits(tuned, image))
