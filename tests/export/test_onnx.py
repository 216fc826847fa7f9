"""ONNX: each operation with a translation, and files in ONNX Runtime, by the card's program, and in a browser.

`.ci/onnx` fetches onnxruntime-web for the browser; elsewhere that test is skipped.
"""

import contextlib
import functools
import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from clipbias.errors import ClipbiasError
from clipbias.export import export, onnx_file
from clipbias.export.jaxpr_to_onnx import to_onnx
from clipbias.export.program import program_weights
from tests import families
from tests.browser import Browser
from tests.documents import ROOT
from tests.export import models

WEB = "ONNXRUNTIME_WEB"  # the folder `dist` of the package onnxruntime-web


@pytest.mark.ci
def test_the_file_gives_jaxs_logits_for_any_batch_size(clip, tmp_path):
    """Of one batch size `tests/relations` says it of every method."""
    tuned = models.tuned(clip, "gda", tmp_path)
    assert export(tuned, tmp_path / "out", form="onnx") == "onnx"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "classifier.onnx")
    images = models.pictures(clip)
    logits = models.logits(tuned, images)
    for count in (4, 1, 3):
        models.assert_close(session.run(["logits"], {"images": images[:count]})[0], logits[:count], onnx_file.TOLERANCE)
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["class_names"] == list(models.CLASS_NAMES)
    assert 0 < labels["check"]["largest_difference"] < onnx_file.TOLERANCE * labels["check"]["largest_logit"]


@pytest.mark.ci
@pytest.mark.parametrize("family", ["pe", "siglip"])
def test_other_families_towers(tmp_path, family):
    """Rotary positions, attention pooling, and the exact GELU."""
    model = families.reference(family, 1, tmp_path)
    task = families.task_of(model, "ivlp")
    learnables = models.learned(task, families.ADDED)
    session = onnxruntime.InferenceSession(onnx_file.convert(task, program_weights(task, learnables)))
    images = models.pictures(model.clip)
    expected = models.task_logits(task, learnables, images)
    models.assert_close(session.run(["logits"], {"images": images})[0], expected)


@pytest.mark.ci
def test_a_file_that_computes_something_else_is_not_left(clip, tmp_path, monkeypatch):
    tuned = models.tuned(clip, "bias", tmp_path)
    original = onnx_file.classify
    monkeypatch.setattr(onnx_file, "classify", lambda *args: original(*args) * 1.001)
    with pytest.raises(ClipbiasError, match=r"logits differ from JAX's by .* Export the adapter as a program"):
        export(tuned, tmp_path / "out", form="onnx")
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 10)
    with pytest.raises(ClipbiasError, match="an ONNX file holds at most 2; export the adapter as a program"):
        export(tuned, tmp_path / "out", form="onnx")
    monkeypatch.undo()

    monkeypatch.setattr(onnx_file, "classify", lambda *args: jnp.sort(original(*args)))
    refused = "'bias' cannot become an ONNX file: JAX's operation 'sort' has no translation.*; export it as a program"
    with pytest.raises(ClipbiasError, match=refused):
        export(tuned, tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line for each request."""

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(WEB not in os.environ, reason="onnxruntime-web is not there")
def test_the_page_in_a_browser(clip, tmp_path):
    """It loads nothing from elsewhere but ONNX Runtime, which stands beside it here."""
    tuned, exported = models.tuned(clip, "ivlp", tmp_path), tmp_path / "out"
    export(tuned, exported, form="onnx")
    code = (ROOT / "docs" / "browser" / "index.html").read_text(encoding="utf-8")
    (address,) = re.findall(r'"(https://[^"]*/dist)/', code)
    (exported / "index.html").write_text(code.replace(address, "./dist"))
    (exported / "dist").symlink_to(os.environ[WEB])
    Image.fromarray(models.pictures(clip)[0]).save(exported / "picture.png")  # which needs no resizing
    (exported / "favicon.ico").touch()  # which a browser asks for
    picture = "createImageBitmap(await (await fetch('picture.png')).blob())"
    browser = Browser(tmp_path / "profile", local=True)
    try:
        with served(exported) as place:
            browser.open(f"{place}/index.html")
            browser.wait_for("window.classify")
            logits = browser.evaluate(f"(async () => Array.from(await classify(await {picture})))()")
            assert browser.complaints == [] and all(request.startswith(place) for request in browser.requests)
    finally:
        browser.close()
    models.assert_close(np.array(logits), models.logits(tuned, models.pictures(clip)[:1])[0], onnx_file.TOLERANCE)


# Every operation that has a translation, for any batch size


SHAPE = (4, 6)
TABLE = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
Function = Callable[[jax.Array], jax.Array]


def scanned(x: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Scans constants and a part of the input; returns the carry and what is stacked."""

    def step(carry: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weights, row = part
        return carry * weights.mean() + row.sum(), carry.sum((1, 2)) + row.mean(1)

    carry, rows = jax.lax.scan(step, x, (TABLE[:4], x.swapaxes(0, 1)), reverse=reverse)
    return carry.sum(2) + rows.T


def looped(x: jax.Array) -> jax.Array:
    """A loop of a length that depends on the input, with a constant, an input and a captured value in its state."""
    most = x.sum((1, 2)).max()

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, count, same = state
        return total * 1.5 + jnp.broadcast_to(same[0, 0, 0], x.shape[:1]), count + 1, same

    start = x[:, 0, 0] + 1, jnp.int32(0), x
    total, count, _ = jax.lax.while_loop(lambda state: state[0].sum() < most, step, start)
    return total + count


def attention(x: jax.Array) -> jax.Array:
    scores = jnp.einsum("BNK,BMK->BNM", x, x)
    return jnp.einsum("BNM,BMK->BKN", jax.nn.softmax(scores), x)


FUNCTIONS: dict[str, Function] = {
    "elementwise": lambda x: jnp.tanh(x) * jnp.exp(-jnp.abs(x)) / (jnp.sqrt(x + 1) + jnp.log(x + 2)) ** 3 + x**1.7,
    "gelu": lambda x: jax.nn.gelu(x - 2, approximate=False) + jax.nn.gelu(x, approximate=True) + jax.nn.relu(x - 2),
    "layer_norm": lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5),
    "choice": lambda x: jnp.where((x > 1) & ~(x >= 3) | (x == 0), jnp.clip(x, 1.5, 2), -x),
    "weights": lambda x: x @ TABLE[0].T + jnp.einsum("BNK,BMK->NM", x, x),
    "attention": attention,
    "both_sides_free": lambda x: jnp.einsum("SCD,BMD->BCMS", TABLE, x),
    "joined": lambda x: jnp.concatenate([jnp.broadcast_to(TABLE[0, :1], (x.shape[0], 1, 6)), x[:, :0], x], 1),
    "stacked": lambda x: jnp.stack([x[:, 0], x[:, 1]], axis=1).reshape(-1, 3),
    "split": lambda x: jnp.subtract(*jnp.split(x, 2, axis=2)),
    "cut": lambda x: x[:, 1:3, 1:-1] + jax.lax.slice_in_dim(x, 0, 4, 2, axis=1)[..., :4],
    "padded": lambda x: jnp.pad(x, [(0, 0), (1, 2), (0, 1)], constant_values=3.0),
    "take": lambda x: x[:, np.array([2, 0, -1])],
    "take_pairs": lambda x: x[:, np.array([2, 0]), np.array([5, 1])],
    "take_by_input": lambda x: jnp.asarray(TABLE)[:, jnp.minimum(x[:, 0, 0].astype(jnp.int32), 1)],
    "take_along_axis": lambda x: jnp.take_along_axis(x, jnp.ones(x.shape[0], jnp.int32)[:, None, None], axis=1)[:, 0],
    "dynamic_slice": lambda x: jax.lax.dynamic_slice(x, (0, jnp.int32(x.max()) + 1, 1), (x.shape[0], 2, 4)),
    "dynamic_index": lambda x: jax.lax.dynamic_index_in_dim(jnp.asarray(TABLE), jnp.int32(x.min()), keepdims=False) + x,
    "reduced": lambda x: x.max(1) + x.min(1) + x.prod(1),
    "called": jax.checkpoint(jax.jit(lambda x: jax.lax.stop_gradient(x) + 1)),
    "scan": scanned,
    "scan_in_reverse": lambda x: scanned(x, reverse=True),
    "while": looped,
    "constant": lambda x: jnp.broadcast_to(jnp.cumsum(TABLE[0])[:3], (x.shape[0], 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnx_runtime_computes_what_jax_computes(name):
    def function(images: jax.Array) -> jax.Array:
        return FUNCTIONS[name](images.astype(jnp.float32) / 64)

    model = to_onnx(function, SHAPE)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = np.random.default_rng(1).integers(0, 256, (3, *SHAPE), np.uint8)
    for count in (3, 1):
        expected = np.asarray(jax.jit(function)(images[:count]))
        (actual,) = session.run(["logits"], {"images": images[:count]})
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, strict=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "operation 'sort' has no translation"),
        (lambda x: x[:, 0, 0] * jnp.arange(x.shape[0]), "operation 'iota' has no translation"),
        (lambda x: x[0, 0, 0] + jax.lax.full((x.shape[0] + 1,), 2.0), "an axis of length B . 1 for a batch of B"),
    ],
    ids=["sort", "iota", "length"],
)
def test_what_has_no_translation_is_named(function, message):
    with pytest.raises(NotImplementedError, match=message):
        to_onnx(lambda images: function(images.astype(jnp.float32)), SHAPE)


def test_constants_that_float16_holds_are_stored_in_half_the_bytes():
    exact = TABLE[0].astype(np.float16).astype(np.float32)
    for table, bytes_each in ((exact, 2), (TABLE[0], 4)):
        model = to_onnx(lambda images, table=table: images.astype(jnp.float32) + table, SHAPE)
        (constant,) = (x for x in model.graph.initializer if x.dims)
        assert len(constant.raw_data) == bytes_each * table.size
