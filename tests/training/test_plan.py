"""The plan of a step: the compiler's account, the ways from the fastest to the smallest, and their equal numbers."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import answers, evaluation_plan, loop, plan
from clipbias.training import mesh as meshes
from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.settings import GridSettings
from clipbias.training.step import train_step
from clipbias.tuning import Task
from clipbias.tuning import task as tasks
from clipbias.tuning.recipe import Recipe
from tests import helpers
from tools.benchmarks import flops, model

GIB = 1 << 30
RECIPE = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)


@pytest.fixture(scope="module")
def deep() -> Clip:
    """The tiny geometry with eight blocks in each tower, so that what blocks keep is most of the memory."""
    return model.random_clip(model.geometry("tiny", layers=8))


def test_every_way_gives_the_same_numbers(clip: Clip) -> None:
    names = ["red", "a green one", "blue", "dark yellow", "x"]
    images = np.random.default_rng(0).normal(size=(2, *[clip.config.vision.image_size] * 2, 3)).astype(np.float32)
    found, labels, start = [], np.array([1, 4]), Task(clip, "ivlp", names).init(0)
    for remat, chunks, groups in (("products", 1, 1), ("half", 3, 1), ("tokens", 2, 2)):
        task = Task(clip, "ivlp", names, remat=plan.REMATS[remat][0], chunks=chunks, groups=groups)
        found.append(jax.jit(jax.value_and_grad(task.loss, argnums=1))(clip.params, start, images, labels))
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)  # of gradients up to ten


def test_the_fastest_way_that_fits_is_chosen(deep: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNKS", (1, 4))  # each is a program to compile
    make = functools.partial(Task, deep, "coop", model.class_names(400))

    def choose(limit: float, **options: Any) -> plan.StepPlan:
        mesh = meshes.single_device()
        return plan.plan_step(make, RECIPE, rows=4, runs=1, mesh=mesh, limit=int(limit), **options)[1]

    roomy = choose(100 * GIB)
    assert (roomy.remat, roomy.chunks, roomy.fits) == ("products", 1, True) and not roomy.options
    tight = choose(0.9 * roomy.bytes / plan.USABLE)
    assert tight.fits and tight.bytes < roomy.bytes and (tight.remat, tight.chunks) == ("half", 1)
    tighter = choose(0.5 * roomy.bytes / plan.USABLE)
    assert tighter.fits and tighter.bytes < tight.bytes and (tighter.chunks > 1 or tighter.remat == "tokens")
    hopeless = choose(1)
    assert not hopeless.fits and hopeless.bytes <= tighter.bytes
    given = choose(100 * GIB, remat="half", chunks=4)
    assert (given.remat, given.chunks) == ("half", 4)
    assert "classes in 4 parts" in str(given) and "of 107 GB" in str(given)


def test_a_plan_counts_what_a_step_holds(deep: Clip) -> None:
    """At least weights, momentum and all that the backward pass reads, and in proportion to the images."""

    def needed(batch: int, runs: int = 1) -> int:
        make = functools.partial(Task, deep, "vpt", model.class_names(3))
        return plan.plan_step(make, RECIPE, rows=batch, runs=runs, mesh=meshes.single_device(), remat="products")[
            1
        ].bytes

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(deep.params))
    geometry = deep.config.vision
    # Of each image and block: the attention's input, queries, keys, values and output, and the MLP's two layers.
    tokens = (1 + geometry.patches + 4) * (5 * geometry.width + geometry.mlp_width) * 4 * (geometry.layers - 1)
    small, large, twice = needed(16), needed(64), needed(64, runs=2)
    assert small > weights + 16 * tokens
    assert 0.9 * 48 * tokens < large - small < 3 * 48 * tokens
    assert twice - large == pytest.approx(large - weights, rel=0.3)


@pytest.mark.parametrize("method", ["ivlp", "vpt", "coop"])
def test_nothing_is_compiled_twice(
    colours: Dataset, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    mesh = meshes.make_mesh(run=2, data=2, devices=jax.devices()[:4]) if method == "ivlp" else meshes.single_device()
    settings = GridSettings({}, "float32", 8, 60.0, "raise")
    # Of sizes that no other test has, so that nothing is compiled already.
    helpers.tiny_checkpoint(tmp_path / "model", vision=(20, 2, 2), text=(28, 2, 2))
    grid = Grid(clipbias.load(tmp_path / "model"), recipe, settings, lambda name: colours, tmp_path / "grid", mesh=mesh)
    (tmp_path / "grid").mkdir()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax._src.dispatch"):
        grid.run(make_packs([method], ["colours"], [4], [1, 2]))
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    fixed = method == "vpt"  # texts that no learnable changes are encoded before, once for training and evaluation
    for name in ("train_step", *([] if fixed else ["text_features"]), "image_features"):
        assert sum(f"jit({name})" in message for message in compiled) == 1, name


def test_wrong_settings_are_one_sentence(deep: Clip) -> None:
    plan_step = functools.partial(
        plan.plan_step,
        functools.partial(Task, deep, "bias", ["a", "b"]),
        RECIPE,
        rows=1,
        runs=1,
        mesh=meshes.single_device(),
    )
    with pytest.raises(ClipbiasError, match="remat is 'all'; choose 'auto', 'products', 'half', 'tokens'"):
        plan_step(remat="all")
    with pytest.raises(ClipbiasError, match="class_chunks is 3; give 1 … 2"):
        plan_step(chunks=3)


def test_the_device_tells_its_memory() -> None:
    assert 0 < plan.device_limit() < 1 << 45


@pytest.mark.parametrize(("method", "options"), [("vpt", {"depth": 8}), ("ivlp", {"depth": 8}), ("bias", {})])
def test_products_are_those_counted_by_hand(deep: Clip, method: str, options: dict) -> None:
    """The traced step holds the arithmetic that it needs, and little else: padding, and what small texts waste."""
    task = Task(deep, method, model.class_names(60), **options)
    arguments = plan.step_arguments(task, RECIPE, rows=16, runs=2, mesh=meshes.single_device())
    needed = 2 * flops.step(task, 16)
    assert 0.98 < plan.flop(train_step, *arguments) / needed < 1.35
    arguments, runs = evaluation_plan.image_arguments(task, batch=10, runs=2, mesh=meshes.single_device())
    prompts = 4 if method != "bias" else 0
    needed = 2 * flops.vision(deep.config, 10, prompts=prompts)
    assert 0.9 < plan.flop(answers.image_features, *arguments, **runs) / needed < 1.02  # patches serve all runs


def test_an_ensemble_is_encoded_in_parts(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    names, templates = model.class_names(20), ("a photo of a {}.", "a drawing of the {}.", "{}")
    whole = Task(clip, "zero_shot", names, templates=templates)
    monkeypatch.setattr(tasks, "TEXTS_AT_ONCE", 7)
    parts = Task(clip, "zero_shot", names, templates=templates)
    assert (whole.classifier.chunks, parts.classifier.chunks) == (1, 9)
    features = [task.fixed_text(clip.params, {}) for task in (whole, parts)]
    np.testing.assert_allclose(*features, rtol=1e-5, atol=2e-6)
    learned = Task(clip, "coop", names)
    assert learned.classifier.chunks == 1


def test_class_features_are_computed_in_parts_where_they_do_not_fit(deep: Clip) -> None:
    make = functools.partial(Task, deep, "coop", model.class_names(100))
    options: dict[str, Any] = dict(runs=3, mesh=meshes.single_device())
    whole = evaluation_plan.fit_evaluation(make, limit=100 * GIB, **options)
    needed = evaluation_plan.class_bytes(whole, **options)
    parts = evaluation_plan.fit_evaluation(make, limit=int(0.7 * needed / plan.USABLE), **options)
    assert whole.classifier.chunks == 1 and parts.classifier.chunks > 1
    assert evaluation_plan.class_bytes(parts, **options) < 0.7 * needed
    start = whole.init(0)
    found = [jax.jit(task.class_features)(deep.params, start) for task in (whole, parts)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_the_plan_comes_before_the_first_step_and_exhaustion_names_the_settings(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.")

    monkeypatch.setattr(loop, "train_step", exhausted)
    settings = GridSettings({}, "float32", 8, 60.0, "raise", class_chunks=2)
    grid = Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=meshes.single_device(), single=True)
    with pytest.raises(ClipbiasError, match=r"out of memory; a step needs about .*lower --config.batch_size") as caught:
        grid.run(make_packs(["bias"], ["colours"], [2], [1]))
    assert "classes in 2 parts" in str(caught.value)
    assert "memory: about" in capsys.readouterr().err


def test_other_errors_of_the_device_pass() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError), plan.explain_exhaustion("x"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_device_has_a_rate() -> None:
    assert 1e6 < plan.device_rate() < 1e16


@pytest.mark.parametrize(
    ("dtype", "held", "formed"),
    [("float32", "f32", "HIGHEST"), ("tensorfloat32", "f32", "HIGH"), ("bfloat16", "bf16", "HIGH")],
)
def test_a_rate_is_that_of_products_of_its_type(dtype: str, held: str, formed: str) -> None:
    multiply, count = plan.square_product(dtype, 8)
    (product,) = [line for line in jax.jit(multiply).lower().as_text().splitlines() if "dot_general" in line]
    assert f"(tensor<8x8x{held}>, tensor<8x8x{held}>)" in product and f"precision = [{formed}, {formed}]" in product
    assert count == 8 * 8 * (8 + 8)
