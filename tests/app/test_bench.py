"""What the page computes, against the library's own functions and matplotlib; the page itself is in `test_page.py`."""

import importlib.metadata
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias.app import Bench, write_space
from clipbias.app.bench import SIZE, heated, read_names, words_html
from clipbias.clip import Clip, encode_image
from clipbias.data.transforms import test_image as as_the_model_sees_it
from clipbias.errors import ClipbiasError
from clipbias.explain.similarity import observe_similarity
from clipbias.report import overlay, style
from tests.app.adapters import NAMES, PICTURE, adapter_of


def test_probabilities_are_those_of_the_task_for_any_names(bench: Bench, clip: Clip) -> None:
    others = ["bird", "cat"]
    tuned, plain = bench.tuned(bench.adapters["prompts"], others), bench.zero_shot(others, "a {}.")
    assert tuned is bench.tuned(bench.adapters["prompts"], others) and tuned.prompts == 4 and plain.prompts == 0
    for side, method, text in ((tuned, "ivlp", {}), (plain, "zero_shot", {"template": "a {}."})):
        task = clipbias.Task(clip, method, others, **text)
        learned = bench.adapters["prompts"].learnables if method == "ivlp" else {}
        logits = task.logits(clip.params, learned, clip.preprocess([PICTURE]))
        np.testing.assert_allclose(side.probabilities(PICTURE), jax.nn.softmax(logits[0]), rtol=1e-5)


def test_relevancy_counts_from_the_layer_that_was_chosen(bench: Bench, clip: Clip) -> None:
    side, patches = bench.tuned(bench.adapters["prompts"], NAMES), clip.config.vision.patches
    given = (side.task, clip.params, side.learnables, clip.preprocess([PICTURE]), [1])
    for layer in (0, 1):
        found, own = bench.look(side, PICTURE, 1, layer=layer), clipbias.relevancy(*given, start_layer=layer)
        grey = overlay.heat_map(np.asarray(own.vision)[0], SIZE, patches)
        np.testing.assert_array_equal(found.picture, heated(large(clip), grey))
        share = float(own.vision[0, patches:].sum() / own.vision[0].sum())
        assert found.note == f"layers {layer + 1} to {clip.config.vision.layers}; {100 * share:.0f} % on prompts"
        tokens, shares = zip(*found.words, strict=True)
        assert tokens[:2] == ("SOS", "[1]") and tokens[-2:] == ("dog", ".")
        row = np.asarray(own.text)[0, : len(tokens)]
        np.testing.assert_allclose(shares, np.minimum(row / row[1:].max(), 1), rtol=1e-4)


def test_attention_and_nearness_are_of_the_layer_and_the_prompt(bench: Bench, clip: Clip) -> None:
    side, patches = bench.tuned(bench.adapters["prompts"], NAMES), clip.config.vision.patches
    adaptation, last = side.task.method.adapt(side.learnables), clip.config.vision.layers - 1
    for layer, slot in ((0, 2), (last, 0)):
        observe = observe_similarity(patches, prompts=4, prompt=slot)
        seen = encode_image(clip.params, clip.config, clip.preprocess([PICTURE]), adaptation, observe=observe)[1]
        for kind, row in (("attention", seen["cls"]), ("prompt", 1 - seen["distance"])):
            found = bench.look(side, PICTURE, 0, kind=kind, layer=layer, slot=slot)
            values = overlay.heat_map(np.asarray(row)[layer, 0], SIZE, patches)
            difference = found.picture.astype(int) - heated(large(clip), values)
            assert np.abs(difference).max() <= 6 and not found.words  # a colour beside it, of 256
    assert found.note == f"layer {last + 1}, prompt 1 of 4"
    assert "no vision prompts" in bench.look(bench.zero_shot(NAMES), PICTURE, 0, kind="prompt").note


def test_there_are_no_maps_of_what_none_can_follow(clip: Clip) -> None:
    bench = Bench(clip, {"inserted": adapter_of(clip, "mmrl", NAMES)})
    side = bench.tuned(bench.adapters["inserted"], NAMES)
    for kind in ("relevancy", "attention", "prompt"):
        found = bench.look(side, PICTURE, 0, kind=kind)
        assert found.note.startswith("Tokens are inserted inside")
        np.testing.assert_array_equal(found.picture, large(clip))


def test_a_map_is_drawn_as_in_the_figures() -> None:
    rng = np.random.default_rng(0)
    image, values = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8), rng.random((60, 60)).astype(np.float32)
    figure = style.new_figure(1, 1)
    figure.set_dpi(60)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    overlay.show_heat(axes, image, values)
    for shown in axes.images:
        shown.set_interpolation("nearest")
    axes.set_axis_off()
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    assert np.abs(drawn - heated(image, values)).max() <= 4  # two roundings to 256 colours each


def test_names_are_read_as_people_write_them() -> None:
    assert read_names("cat, a grey dog,\n") == ["cat", "a grey dog"]
    assert read_names(" cat\n\nsalt, pepper\n") == ["cat", "salt, pepper"]
    assert read_names("  \n") == []


def test_words_cannot_add_to_the_page() -> None:
    text = words_html((("<script>alert(1)</script>", 0.2), ("\x1b[31m&", 1.0)))
    assert "<script>" not in text and "&lt;script&gt;" in text and "\x1b" not in text and "&amp;" in text
    assert words_html(()) == ""


def test_mistakes_get_a_sentence(bench: Bench, clip: Clip) -> None:
    with pytest.raises(ClipbiasError, match="there are no class names; write some, one per line"):
        bench.zero_shot([])
    with pytest.raises(ClipbiasError, match="there are 1001 class names; a page takes at most 1000"):
        bench.zero_shot([f"name {number}" for number in range(1001)])
    with pytest.raises(ClipbiasError, match="heat"):
        bench.look(bench.zero_shot(NAMES), PICTURE, 0, kind="heat")
    with pytest.raises(ClipbiasError, match="does not fit 'demo'"):
        Bench(clipbias.load("demo"), {"of another model": bench.adapters["prompts"]})


def large(clip: Clip) -> np.ndarray:
    """The picture as the model sees it, each pixel as large as a map's."""
    seen = as_the_model_sees_it(PICTURE, clip.config.vision.image_size)
    places = (np.arange(SIZE) + 0.5) * len(seen) // SIZE
    return seen[places.astype(int)][:, places.astype(int)]


def test_a_space_without_gradio_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ClipbiasError, match=r'none is; pip install "clipbias\[app\]"\.'):
        write_space(tmp_path / "space", "demo")
    assert not list(tmp_path.iterdir())
