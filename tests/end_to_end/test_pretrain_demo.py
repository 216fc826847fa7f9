"""Pretraining of the demo model: it learns, continues where it stopped, and writes a model that loads."""

import functools
import json
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

import clipbias
from clipbias.clip import checkpoint
from clipbias.data import demo
from tools import pretrain_demo
from tools.demo import corpus, icons, vocabulary

SMALL = dict(scenes=40, batch_size=8, width=16, layers=1, steps=4, save_every=2, report_every=2, watch=[], workers=1)


def glyphs(style: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """In place of `tools.demo.icons.glyphs`, without a download: discs in every style, whose shade says the name."""
    rows, columns = np.mgrid[: icons.PIXELS, : icons.PIXELS] - icons.PIXELS / 2
    disc = 255 * (rows**2 + columns**2 < (0.4 * icons.PIXELS) ** 2)
    shades = {name: np.full_like(disc, 3 * index % 64) for index, name in enumerate(names)}
    return {name: np.dstack([shade] * 3 + [disc]).astype(np.uint8) for name, shade in shades.items()}


@pytest.mark.long
def test_a_continued_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    """So a scene depends on its seed and index alone, and a batch on its step."""
    monkeypatch.setattr(icons, "glyphs", functools.cache(glyphs))
    with flagsaver.flagsaver(**SMALL, work=str(tmp_path / "a"), model_folder=str(tmp_path / "whole")):
        pretrain_demo.main([])
    draw = corpus.batch

    def stop_at_three(*arguments, step, **options):
        if step == 3:
            raise KeyboardInterrupt
        return draw(*arguments, step=step, **options)

    with flagsaver.flagsaver(**SMALL, work=str(tmp_path / "b"), model_folder=str(tmp_path / "parts")):
        monkeypatch.setattr(corpus, "batch", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            pretrain_demo.main([])
        assert not (tmp_path / "parts").exists()
        monkeypatch.setattr(corpus, "batch", draw)
        pretrain_demo.main([])
    whole, parts = (clipbias.load(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert float(jnp.exp(whole.params["logit_scale"])) == pytest.approx(50, rel=1e-3)
    assert whole.tokenize(["a photo of a seven."]).shape == (1, 8)


def test_equal_captions_are_matches_of_each_other():
    image_features, text_features = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    ids = jnp.array([[1534, 5, 1535], [1534, 5, 1535], [1534, 9, 1535]])
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image_features, text_features)]
    logits = 4.0 * unit[0] @ unit[1].T
    targets = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])

    def cross_entropy(values):
        return -(targets * (values - np.log(np.exp(values).sum(-1, keepdims=True)))).sum(-1).mean()

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    value = jax.jit(pretrain_demo.matching_loss)(image_features, text_features, ids, np.log(np.float32(4)))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_equal_captions_of_other_images_count_for_nothing_in_siglips_loss():
    image_features, text_features = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    ids = jnp.array([[5, 1535], [5, 1535], [9, 1535]])
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image_features, text_features)]
    logits = 4.0 * unit[0] @ unit[1].T - 2.0
    expected = 0.0
    for i, j in ((0, 0), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)):  # all pairs but (0, 1) and (1, 0)
        expected += np.log(1 + np.exp(-logits[i, j] if i == j else logits[i, j])) / 3
    value = jax.jit(pretrain_demo.sigmoid_loss)(image_features, text_features, ids, np.log(np.float32(4)), -2.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("name", checkpoint.EMBEDDED)
def test_the_embedded_models_are_small_and_far_above_chance(name):
    folder = Path(str(resources.files("clipbias") / "assets" / name))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    model = clipbias.load(name)
    assert model.config == pretrain_demo.model_config(128, 4, "siglip" if name == "demo-siglip" else "clip")
    accuracy = pretrain_demo.zero_shot_accuracy(model.params, model, demo.load("demo/digits"))
    assert 0.4 < accuracy < 0.95  # chance is 0.1, and there must be something left to adapt


def test_the_embedded_vocabulary_is_the_one_that_the_code_builds():
    folder = Path(str(resources.files("clipbias") / "assets" / "demo"))
    built, merges = vocabulary.build(pretrain_demo.VOCABULARY_SIZE)
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == built
    assert len((folder / "merges.txt").read_text(encoding="utf-8").splitlines()) == 1 + len(merges)
