"""What is set up where steps run on the CPU, and where compiled programs are kept."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from clipbias.training import device
from clipbias.training import mesh as meshes


def test_weights_exist_once(clip):
    on_host = jax.tree.map(np.asarray, clip.params)  # as `load(device="host")` returns them
    placed = meshes.replicate(meshes.single_device(), on_host)
    for ours, copy in zip(jax.tree.leaves(on_host), jax.tree.leaves(placed), strict=True):
        if ours.ndim > 1:  # small ones are copied
            assert copy.addressable_data(0).unsafe_buffer_pointer() == ours.ctypes.data


def test_the_code_generator_is_chosen_unless_the_user_did(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_cpu_use_fusion_emitters=false"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", (9, 9, 9))  # which was not tried
    device.choose_code_generator()
    assert device.os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(
    ("configured", "switched_off", "kept_in"),
    [(None, "", "own/clipbias/xla"), (None, "1", None), ("elsewhere", "", "elsewhere")],
)
def test_programs_are_kept_unless_told_otherwise(configured, switched_off, kept_in, tmp_path, monkeypatch):
    settings = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in settings]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("CLIPBIAS_NO_CACHE", switched_off)
    try:
        jax.config.update(settings[0], None if configured is None else str(tmp_path / configured))
        device.keep_programs()
        setting = getattr(jax.config, settings[0])
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)
    assert setting == (None if kept_in is None else str(tmp_path / kept_in))
    assert (tmp_path / "own").exists() == bool(kept_in and kept_in.startswith("own"))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_another_c_library_is_left_alone(platform, monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    monkeypatch.setattr(sys, "platform", platform)
    assert device.keep_freed_memory() is False


STEPS = """
from clipbias.training import device
device.prepare_cpu()
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    return jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ x), x)  # many times as long as a call takes

x = step(jnp.full((256, 256), 0.01)).block_until_ready()
for _ in range(5):
    x = step(x)
    print(x.is_ready())
"""


@pytest.mark.ci
def test_a_step_is_over_when_its_call_returns():
    """So that the next one finds the memory of its intermediate arrays free."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 5
