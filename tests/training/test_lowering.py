"""Training steps are lowered for accelerators that are not there, which finds what does not trace for them."""

import dataclasses

import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from clipbias.clip import Clip, layers
from clipbias.training import mesh as meshes
from clipbias.training.plan import step_arguments
from clipbias.training.step import train_step
from clipbias.tuning import Task, make_method
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import model

RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
NAMES = ["red", "a green one", "blue"]


@pytest.fixture(scope="module")
def small() -> Clip:
    """One head of a width that cuDNN has kernels for in each tower, and an odd number of tokens of an image."""
    config = model.geometry("tiny", layers=3)
    towers = {
        name: dataclasses.replace(getattr(config, name), width=16, heads=1, mlp_width=16) for name in ("vision", "text")
    }
    config = dataclasses.replace(config, **towers)
    assert config.vision.patches % 2 == 0
    return model.random_clip(config)


def lowered(clip: Clip, name: str, dtype: str, platform: str, *, runs: int) -> str:
    task = Task(clip, make_method(name), NAMES, dtype=dtype)
    arguments = step_arguments(task, RECIPE, rows=4, runs=runs, mesh=meshes.single_device(), images=12)
    return train_step.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", ["bias", "ivlp", "maple", "clip_lora", "mmrl"])
def test_half_precision_on_an_nvidia_gpu_goes_through_its_kernel(
    small: Clip, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, with odd and even numbers of tokens, of runs side by side."""
    monkeypatch.setattr(layers, "cudnn_takes", lambda dtype, width: dtype == jnp.bfloat16)
    answers = {
        "check_cudnn_version": lambda: 91200,
        "check_compute_capability": lambda asked: float(asked) <= 9,
        "is_cuda_compute_capability_equal": lambda asked: asked == "9.0",
    }
    for check, answer in answers.items():
        monkeypatch.setattr(fused_attention_stablehlo, check, answer)
    # Three runs: no other test traces a step of these shapes, which JAX would keep with its own answers.
    text = lowered(small, name, "bfloat16", "cuda", runs=3)
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_lowered_for_a_tpu(small: Clip, dtype: str) -> None:
    text = lowered(small, "ivlp", dtype, "tpu", runs=1)
    assert ("bf16" in text) == (dtype == "bfloat16")
