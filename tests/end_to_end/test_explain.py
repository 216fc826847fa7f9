"""The binaries `explain` and `predict` as a user runs them, on a tiny model and images of noise."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
import experiments.evaluate
import experiments.explain
import experiments.predict
from clipbias import data
from clipbias.data import transforms
from clipbias.errors import ClipbiasError
from clipbias.explain.results import SECTIONS, load_results
from clipbias.tuning import Task
from clipbias.tuning.adapter import load_adapter, save_adapter
from tests.end_to_end.binaries import answer_here, assert_recorded, refusal_here, succeed_here

CLASS_NAMES = ("bird", "cat", "dog")
SETTINGS = {"dataset": "folder", "batch_size": 4, "faithfulness_images": 2, "examples": 2, "rotations": (0, 90)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of noise per class and split."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(CLASS_NAMES):
        for index in range(2):
            pixels = np.random.default_rng([number, index]).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            for split in ("train", "test"):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An IVLP and a bias adapter with random learnables; the second in a folder as `train` leaves it."""
    folder, clip = tmp_path_factory.mktemp("adapters"), clipbias.load(model)
    paths = [folder / "ivlp.safetensors", folder / "bias" / "adapter.safetensors"]
    for method, path in zip(("ivlp", "bias"), paths, strict=True):
        task = Task(clip, method, CLASS_NAMES)
        draw = np.random.default_rng(0)
        learnables = {name: draw.normal(0, 0.3, np.shape(x)).astype("f") for name, x in task.init().items()}
        save_adapter(path, task, learnables)
    return [str(paths[0]), str(paths[1].parent)]


def test_a_whole_study_with_its_report(images, adapters, tmp_path):
    """Of one tuned model; the command of the documentation explains two."""
    settings = SETTINGS | {"data_dir": str(images), "adapters": adapters[0]}
    printed, _ = succeed_here(experiments.explain, settings, tmp_path)
    report = tmp_path / "report" / "report.html"
    assert str(report) in printed
    assert all(words in report.read_text("utf-8") for words in ("What carries the gain", "Explore the images"))
    assert_recorded(tmp_path, "results.json", "results.npz")
    results = load_results(tmp_path)
    assert [model["key"] for model in results.scalars["models"]] == ["zero_shot", "ivlp"]
    assert results.scalars["sections"] == list(SECTIONS)
    assert set(results.scalars["verdict"]) == {"ivlp"}
    # With the reference's part of everything it classifies as zero-shot's image tower does, else as the tuned model.
    test = results.scalars["factorial"]["ivlp"]
    assert (test["towers"], test["streams"][7]) == (["both", "vision", "text"], "PPP")
    correct = results.arrays["factorial/ivlp/correct"]
    assert correct[:, 0, 7].sum() == results.scalars["models"][1]["correct"]
    assert "ivlp:random" in results.scalars["factorial"]
    before = results.arrays["vision_attention/zero_shot/clip/distance/mean"]
    after = results.arrays["vision_attention/ivlp/without_prompt/distance/mean"]
    np.testing.assert_allclose(before[0], after[0], rtol=1e-5)
    assert np.abs(before[1:] - after[1:]).max() > 1e-3
    assert results.arrays["similarity/ivlp/prompts"].shape == (4, 3, 16, 16)
    assert all(np.isfinite(results.arrays[name]).all() for name in results.arrays if name.endswith("/mean"))


def test_several_datasets_get_an_overview_and_a_second_run_finds_all_there(model, images, tmp_path):
    settings = {"datasets": ("folder",), "sections": "text_attention,faithfulness", "model": str(model)}
    settings |= {"data_dir": str(images), "batch_size": 4, "faithfulness_images": 2}
    made = []
    for _ in range(2):
        assert answer_here(experiments.explain, settings, tmp_path)[0] == 0
        made.append({path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "parts").glob("*.npz")})
    assert len(made[0]) >= 3 and made[0] == made[1]
    assert (tmp_path / "folder" / "report" / "report.html").exists()
    assert_recorded(tmp_path, "overview.html")


def test_what_an_evaluation_predicted_is_read_by_a_study(model, images, adapters, tmp_path):
    common = {"dataset": "folder", "data_dir": str(images), "model": str(model)}
    for name, adapter in (("zero_shot", ""), ("bias", adapters[1])):
        settings = common | {"adapter": adapter, "eval_batch_size": 4}
        assert answer_here(experiments.evaluate, settings, tmp_path / name)[0] == 0
    settings = common | {"sections": "text_attention", "adapters": ",".join(adapters), "batch_size": 4}
    read = settings | {"predictions": f"{tmp_path / 'zero_shot'},{tmp_path / 'bias'}"}
    said = [answer_here(experiments.explain, own, tmp_path / name)[1] for own, name in ((settings, "a"), (read, "b"))]
    assert [lines.count("predictions read") for lines in said] == [0, 2]
    computed, found = (load_results(tmp_path / name).arrays for name in "ab")
    for key in ("zero_shot", "ivlp", "bias"):
        np.testing.assert_array_equal(found[f"predictions/{key}"], computed[f"predictions/{key}"])
    # And read they were: a study believes what it finds.
    (path,) = (tmp_path / "bias" / "predictions").iterdir()
    with np.load(path) as stored:
        kept = dict(stored)
    kept["predicted"] = (kept["predicted"] + 1) % 3
    np.savez(path, **kept)
    assert answer_here(experiments.explain, read, tmp_path / "c")[0] == 0
    changed = load_results(tmp_path / "c").arrays["predictions/bias"]
    np.testing.assert_array_equal(changed, (computed["predictions/bias"] + 1) % 3)


def test_predictions_with_relevancy(images, adapters, tmp_path, monkeypatch):
    """Each image's own, whichever batch it is in, the last one filled up; what cannot be read moves no other."""
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "test" / "cat" / "0.png").read_bytes()[:60])
    Image.new("RGB", (24, 20), "blue").save(tmp_path / "blue.png")
    cats = images / "test" / "cat"
    files = [cats / "0.png", cats / "1.png", tmp_path / "blue.png", images / "test" / "dog" / "0.png"]
    settings = {"images": f"{broken},{cats},{files[2]},{files[3]}", "adapter": adapters[1]}
    settings |= {"batch_size": 2, "top": 2}
    assert "broken.png cannot be decoded" in refusal_here(experiments.predict, settings, tmp_path / "refused")

    drawn, save = [], experiments.predict.save_overlay
    monkeypatch.setattr(
        experiments.predict, "save_overlay", lambda *given, **named: (drawn.append(given), save(*given, **named))
    )
    out, settings = tmp_path / "out", settings | {"on_image_error": "skip"}
    printed, _ = succeed_here(experiments.predict, settings, out, relevancy=True)
    assert_recorded(out, "predictions.json")
    assert printed.count("skipped: ") == 1 and "broken.png" in printed
    found = json.loads((out / "predictions.json").read_text())
    assert [entry["image"] for entry in found] == [str(path) for path in files]
    assert printed.count(" %") == (2 + 1) * len(files) and printed.count("; zero-shot ") == len(files)
    names = ["0001_0.png", "0002_1.png", "0003_blue.png", "0004_0.png"]
    assert sorted(path.name for path in (out / "relevancy").iterdir()) == names

    adapter = load_adapter(Path(adapters[1]) / "adapter.safetensors")
    task, learnables = adapter.bind(clip := clipbias.load(adapter.base))
    frozen, seen = Task(clip, "zero_shot", CLASS_NAMES, template=adapter.template), clip.preprocess(files)
    expected, zero_shot = (
        np.asarray(jax.nn.softmax(jax.jit(bound.logits)(clip.params, given, seen)))
        for bound, given in ((task, learnables), (frozen, {}))
    )
    # The second image of a batch, the blue one, has others on top than the first: else the first one's order would do.
    assert (np.argsort(-expected[2])[:2] != np.argsort(-expected[1])[:2]).any()
    assert np.abs(expected - zero_shot).max() > 0.01
    for entry, own, plain, (path, _, (before, overlay)) in zip(found, expected, zero_shot, drawn, strict=True):
        top = np.argsort(-plain)[:2]
        assert entry["zero_shot"]["classes"] == [CLASS_NAMES[one] for one in top]
        np.testing.assert_allclose(entry["zero_shot"]["probabilities"], plain[top], rtol=1e-4)
        assert before.title == f"Zero-shot\n{CLASS_NAMES[top[0]]} {100 * plain[top[0]]:.0f} %"
        best = np.argsort(-own)[:2]
        assert entry["classes"] == [CLASS_NAMES[one] for one in best]
        np.testing.assert_allclose(entry["probabilities"], own[best], rtol=1e-4)
        number = int(path.name[:4]) - 1
        pair = clip.preprocess([files[number]] * 2)
        maps = clipbias.relevancy(task, clip.params, learnables, pair, np.asarray([best[0]] * 2))
        np.testing.assert_allclose(overlay.vision, maps.vision[0], rtol=1e-3, atol=1e-6)
        assert overlay.title.startswith(f"Tuned\n{CLASS_NAMES[best[0]]}")
        maps = clipbias.relevancy(frozen, clip.params, {}, pair, np.asarray([top[0]] * 2))
        np.testing.assert_allclose(before.vision, maps.vision[0], rtol=1e-3, atol=1e-6)


def test_adapters_are_named_apart_and_found_where_grids_put_them(model, tmp_path):
    clip, dataset = clipbias.load(model), data.load("demo/digits")
    task = Task(clip, "bias", dataset.class_names)
    for seed in (1, 2):
        path = tmp_path / f"bias-demo_digits-seed{seed}.safetensors"
        save_adapter(path, task, task.init(), notes={"seed": seed})
    written = [f"{tmp_path}/bias-{{dataset}}-seed{seed}.safetensors" for seed in (1, 2)]
    paths = [place for path in written for place in experiments.explain.places_of(path, "demo/digits")]
    assert experiments.explain.places_of(f"{tmp_path}/bias-{{dataset}}-*.safetensors", "demo/digits") == paths
    with pytest.raises(ClipbiasError, match=r"no adapter file matches .*/vpt-demo_digits"):
        experiments.explain.places_of(f"{tmp_path}/vpt-{{dataset}}-*.safetensors", "demo/digits")
    adapters = [(load_adapter(path), path) for path in (*paths, paths[1])]
    found = [
        (model.key, model.label, model.seed)
        for model in experiments.explain.models(clip, dataset, adapters, "float32")[1:]
    ]
    assert found == [
        ("bias", "Bias tuning", 1),
        ("bias_seed2", "Bias tuning (seed 2)", 2),
        ("bias_2", "Bias tuning (2)", 2),
    ]
    assert experiments.explain.places_of("runs/{dataset}/ivlp", "demo/digits") == ["runs/demo/digits/ivlp"]


def test_zero_shot_takes_names_from_a_file(model, images, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\n\nmaine coon\n")
    settings = {"images": str(images / "test" / "cat" / "0.png"), "model": str(model), "classes": str(names)}
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    assert "maine coon" in capsys.readouterr().out
    total = sum(json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["probabilities"])
    assert total == pytest.approx(1, abs=1e-5)


def test_texts_in_place_of_class_names(model, adapters, images, tmp_path):
    """From a file or the command line, and with what an adapter learned; the numbers are those of the library."""
    texts, picture = ("a dog on_grass", "two cats"), images / "test" / "cat" / "0.png"
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    clip = clipbias.load(model)
    pixels = transforms.test_image(transforms.decode(picture.read_bytes(), ""), clip.config.vision.image_size)
    normal = clip.preprocessing.normalize(pixels[None])
    zero_shot = clipbias.Task(clip, "zero_shot", texts, free_text=True), {}
    learned = clipbias.load_adapter(adapters[0]).bind(clip, texts, free_text=True)
    for given, adapter, (task, learnables) in (
        (",".join(texts), "", zero_shot),
        (str(tmp_path / "texts.txt"), str(adapters[0]), learned),
    ):
        settings = {"images": str(picture), "texts": given, "adapter": adapter, "model": str(model)}
        assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
        (found,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert "classes" not in found
        logits = jax.jit(task.logits)(clip.params, learnables, normal)[0]
        expected = dict(zip(texts, jax.nn.softmax(logits).tolist(), strict=True))
        assert dict(zip(found["texts"], found["probabilities"], strict=True)) == pytest.approx(expected, rel=1e-5)


def test_a_head_of_ones_own_takes_other_classes(model, images, tmp_path):
    """The probabilities are those of the learnables that the method makes for these classes."""
    clip, picture, names = clipbias.load(model), images / "test" / "cat" / "0.png", ("bird", "horse", "cat")
    task = clipbias.Task(clip, "tests.own_methods:Probe", ("cat", "dog"))
    clipbias.save_adapter(tmp_path / "a.safetensors", task, task.init())
    settings = {"images": str(picture), "adapter": str(tmp_path / "a.safetensors"), "classes": ",".join(names)}
    settings |= {"own_methods": "tests.own_methods", "top": 3, "zero_shot": False}
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    (found,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    bound, learnables = clipbias.load_adapter(tmp_path / "a.safetensors").bind(
        clip, names, own_methods=["tests.own_methods"]
    )
    pixels = transforms.test_image(transforms.decode(picture.read_bytes(), ""), clip.config.vision.image_size)
    logits = jax.jit(bound.logits)(clip.params, learnables, clip.preprocessing.normalize(pixels[None]))[0]
    expected = dict(zip(names, jax.nn.softmax(logits).tolist(), strict=True))
    assert dict(zip(found["classes"], found["probabilities"], strict=True)) == pytest.approx(expected, rel=1e-5)
    assert max(expected.values()) > 0.34  # three classes apart


@pytest.mark.parametrize(
    "binary, settings, message",
    [
        ("predict", {"images": "/nowhere.png", "classes": "a"}, "there is no image or folder /nowhere.png"),
        ("predict", {"classes": "a"}, "no images to classify"),
        ("predict", {"images": "pyproject.toml", "classes": "a", "texts": "b"}, "texts stand in place of class names"),
        ("predict", {"images": "pyproject.toml", "texts": "/nowhere.txt"}, "there is no file of texts /nowhere.txt"),
        ("explain", {"sections": "relevance"}, "unknown section 'relevance'"),
        ("explain", {"adapters": "/nowhere"}, "no adapter file /nowhere"),
    ],
)
def test_refusals(binary, settings, message, tmp_path):
    assert message in refusal_here(getattr(experiments, binary), settings, tmp_path)
