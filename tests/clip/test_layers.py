"""Attention: which kernel is taken where. What blocks compute is compared with torch and NumPy elsewhere."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import layers
from clipbias.training import placement
from clipbias.training.step import over_runs


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "taken"),
    [
        ("8.0", jnp.bfloat16, 128, True),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 12, False),
        ("9.0", jnp.bfloat16, 136, False),
        ("7.5", jnp.bfloat16, 64, False),  # a T4
        ("gfx942", jnp.bfloat16, 64, False),  # AMD
        (None, jnp.bfloat16, 64, False),
    ],
)
def test_cudnn_where_it_has_a_kernel(monkeypatch, capability, dtype, width, taken):
    device = types.SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.cudnn_takes(jnp.dtype(dtype), width) == taken


@pytest.mark.parametrize("tokens", [6, 7])
def test_what_cudnn_is_given_is_the_same_attention(tokens):
    """The arithmetic of the call, by XLA's products: an odd number of tokens, one more added, and its gradient."""
    q, k, v, weight = np.random.default_rng(tokens).normal(size=(4, 2, tokens, 3, 8)).astype(np.float32)
    cudnn = functools.partial(layers.cudnn_attention, implementation="xla")
    own = functools.partial(layers.fused_attention, causal=False)

    def run(attend: Any) -> Any:
        def loss(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            output = attend(*inputs)
            return (output * weight).sum(), output

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    ((_, fused), gradients), ((_, plain), expected) = jax.jit(lambda: (run(cudnn), run(own)))()
    np.testing.assert_allclose(fused, plain, rtol=2e-5, atol=2e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("run", "runs", "images"), [(2, 4, 4), (2, 3, 4), (1, 2, 3)])
def test_devices_that_attend_by_themselves_find_the_same(run, runs, images):
    """Runs side by side on a mesh, split along its axis `run` or not, and images that `data` does not divide."""
    mesh = placement.make_mesh(run=run, devices=jax.devices()[:8])
    values = np.random.default_rng(run).normal(size=(4, runs, images, 7, 3, 8))
    q, k, v, weight = values.astype(np.float32)

    def attended(q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return (layers.cudnn_attention(q, k, v, implementation="xla") * weight).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    together = jax.jit(over_runs(attended, [0] * 4, runs=runs, mesh=mesh))
    placed = placement.device_put(
        mesh, (q, k, v, weight), placement.RUN, None if images % mesh.shape[placement.DATA] else placement.DATA
    )
    program = together.lower(*placed).compile()
    assert "all-gather" not in program.as_text()
    alone = jax.jit(attended)
    expected = [alone(*arguments) for arguments in zip(q, k, v, weight, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), program(*placed), stacked)
