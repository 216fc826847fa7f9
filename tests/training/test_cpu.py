"""What is set up where steps run on the CPU."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.training import cpu
from clipbias.training import mesh as meshes


def test_weights_exist_once(clip: Clip) -> None:
    placed = meshes.replicate(meshes.single_device(), clip.params)
    for ours, device in zip(jax.tree.leaves(clip.params), jax.tree.leaves(placed), strict=True):
        assert isinstance(ours, np.ndarray)
        if ours.ndim > 1:  # small ones are copied
            assert device.addressable_data(0).unsafe_buffer_pointer() == ours.ctypes.data


def test_the_code_generator_is_chosen_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    cpu.choose_code_generator()
    assert cpu.os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_cpu_use_fusion_emitters=false"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    cpu.choose_code_generator()
    assert cpu.os.environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true"


def test_versions_that_were_not_tried_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", (9, 9, 9))
    cpu.choose_code_generator()
    assert cpu.os.environ["XLA_FLAGS"] == ""


STEPS = """
import resource
from clipbias.training import cpu
cpu.prepare()
import jax, jax.numpy as jnp

def step(x):
    twice = jax.lax.fori_loop(0, 2, lambda _, w: jnp.sin(w[:, :128] @ x[:128]), jnp.cos(x))
    return x + jnp.sin(twice)[:8, :8].sum()

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

state = jnp.ones((2048, 2048))
compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
state = compiled(state).block_until_ready()
before = peak()
for _ in range(8):
    state = compiled(state)
state.block_until_ready()
print(compiled.memory_analysis().temp_size_in_bytes, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_steps_in_a_row_need_the_memory_of_one() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    intermediate, grown = map(int, done.stdout.split())
    assert intermediate > 30e6
    assert grown < intermediate / 2
