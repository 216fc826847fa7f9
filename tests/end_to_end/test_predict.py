"""The binary `predict` as a user runs it, on a tiny model and images of noise."""

import csv
import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
import experiments.predict
from clipbias.data import transforms
from clipbias.errors import ClipbiasError
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.tuned import Tuned
from experiments.inputs import find_images
from tests.end_to_end.conftest import (
    CLASS_NAMES,
    answer_here,
    assert_recorded,
    refusal_here,
    save_random,
    start,
    succeed_here,
)


def test_a_name_may_have_a_comma(tmp_path):
    (tmp_path / "a, b").mkdir()
    files = [tmp_path / "a, b" / "it's, c.png", tmp_path / "d.png"]
    for file in files:
        Image.new("RGB", (2, 2)).save(file)
    assert find_images(str(files[0])) == find_images(str(tmp_path / "a, b")) == files[:1]
    assert find_images(f"{files[1]}, {files[1]}") == [files[1]] * 2
    with pytest.raises(ClipbiasError, match=r"no image or folder .*a; commas separate names, so give the folder"):
        find_images(f"{files[0]},{files[1]}")


@pytest.mark.long
def test_zero_shot_sees_the_whole_image_and_the_adapters_template(model, tmp_path):
    """Also beside a method that learns of crops of each image."""
    clip = clipbias.load(model)
    names = ("cat", "dog", "bird")
    template = "two {} beside a house."
    task = clipbias.Task(clip, "tpt_coop", names, template=template)
    write_adapter(tmp_path / "a.safetensors", Tuned(task, task.init(seed=0)))
    files = [tmp_path / "one.png", tmp_path / "other.png"]
    for file in files:
        picture = np.random.default_rng(len(file.stem)).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(picture).save(file)
    settings = {"images": ",".join(map(str, files)), "adapters": str(tmp_path / "a.safetensors"), "top": 3}
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    zero_shot = clipbias.Task(clip, "zero_shot", names, template=template)
    expected = jax.nn.softmax(jax.jit(zero_shot.logits)(clip.params, {}, clip.preprocess(files)))
    for entry, values in zip(entries, np.asarray(expected), strict=True):
        shares = dict(zip(entry["zero_shot"]["classes"], entry["zero_shot"]["probabilities"], strict=True))
        assert shares == pytest.approx(dict(zip(names, values.tolist(), strict=True)), rel=1e-4)
        assert entry["probabilities"] != pytest.approx(entry["zero_shot"]["probabilities"], rel=1e-3)


@pytest.mark.ci
def test_predictions_with_relevancy(images, adapters, tmp_path, monkeypatch):
    """Each image's own, whichever batch it is in, the last one filled up; what cannot be read moves no other."""
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "test" / "cat" / "0.png").read_bytes()[:60])
    Image.new("RGB", (24, 20), "blue").save(tmp_path / "blue.png")
    cats = images / "test" / "cat"
    files = [cats / "0.png", cats / "1.png", tmp_path / "blue.png", images / "test" / "dog" / "0.png"]
    settings = {"images": f"{broken},{cats},{files[2]},{files[3]}", "adapters": adapters[1]}
    settings |= {"batch_size": 2, "top": 2, "relevancy": True}
    drawn, draw = [], experiments.predict.overlay_figure

    def noted(*arguments, **named):
        drawn.append(arguments)
        return draw(*arguments, **named)

    monkeypatch.setattr(experiments.predict, "overlay_figure", noted)
    out = tmp_path / "out"
    printed, _ = succeed_here(experiments.predict, settings, out)
    assert_recorded(out, "predictions.json")
    _, *entries = json.loads((out / "predictions.json").read_text())
    assert [entry["image"] for entry in entries] == [str(path) for path in files]
    assert printed.count("; zero-shot ") == len(files)
    names = sorted(path.name.rpartition("_")[0] for path in (out / "relevancy").iterdir())
    assert names == ["0", "0", "1", "blue"]  # of two folders

    adapter = read_adapter(Path(adapters[1]) / "adapter.safetensors")
    model = adapter.bind(clip := clipbias.load(adapter.base))
    task, learnables = model.task, model.learnables
    frozen = Task(clip, "zero_shot", CLASS_NAMES, template=adapter.template)
    seen = clip.preprocess(files)
    expected, zero_shot = (
        np.asarray(jax.nn.softmax(jax.jit(bound.logits)(clip.params, arguments, seen)))
        for bound, arguments in ((task, learnables), (frozen, {}))
    )
    # The second image of a batch, the blue one, has others on top than the first: else the first one's order would do.
    assert (np.argsort(-expected[2])[:2] != np.argsort(-expected[1])[:2]).any()
    assert np.abs(expected - zero_shot).max() > 0.01
    for number, (entry, probabilities, plain, (_, (before, overlay))) in enumerate(
        zip(entries, expected, zero_shot, drawn, strict=True)
    ):
        top = np.argsort(-plain)[:2]
        assert entry["zero_shot"]["classes"] == [CLASS_NAMES[label] for label in top]
        np.testing.assert_allclose(entry["zero_shot"]["probabilities"], plain[top], rtol=1e-4)
        best = np.argsort(-probabilities)[:2]
        assert entry["classes"] == [CLASS_NAMES[label] for label in best]
        np.testing.assert_allclose(entry["probabilities"], probabilities[best], rtol=1e-4)
        pair = clip.preprocess([files[number]] * 2)
        maps = clipbias.relevancy(task, clip.params, learnables, pair, np.asarray([best[0]] * 2))
        np.testing.assert_allclose(overlay.vision, maps.vision[0], rtol=1e-3, atol=1e-6)
        maps = clipbias.relevancy(frozen, clip.params, {}, pair, np.asarray([top[0]] * 2))
        np.testing.assert_allclose(before.vision, maps.vision[0], rtol=1e-3, atol=1e-6)

    # Other pictures before them, in a later call, take no map away.
    maps = {path: path.read_bytes() for path in (out / "relevancy").iterdir()}
    table = {"output": str(tmp_path / "answers.csv"), "images": str(files[3])}
    succeed_here(experiments.predict, settings | table, tmp_path / "added")
    before = {path: path.read_bytes() for path in (tmp_path / "added" / "relevancy").iterdir()}
    added = succeed_here(experiments.predict, settings | table | {"images": f"{cats},{files[3]}"}, tmp_path / "added")[
        0
    ]
    assert "1 of 3 images have a line in" in added and "and no maps are drawn of them" in added
    assert len(list((tmp_path / "added" / "relevancy").iterdir())) == 3
    assert {*before.values()} <= {*maps.values()} and all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.ci
def test_an_image_that_cannot_be_read_has_a_line_of_its_own(model, images, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    whole = images / "test" / "cat" / "0.png"
    broken.write_bytes(whole.read_bytes()[:60])
    settings = {"images": f"{broken},{whole}", "model": str(model), "classes": "cat,dog"}
    alone = refusal_here(experiments.predict, settings | {"images": str(broken)}, tmp_path / "alone")
    assert "no image could be read, of 1; the first: the image " in alone
    capsys.readouterr()
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    first, second, last = capsys.readouterr().out.strip().split("\n")
    assert first.startswith(f"the image {broken} cannot be decoded") and second.startswith(f"{whole}: ")
    assert last == "1 of 2 images could not be read."


@pytest.mark.long
def test_texts_in_place_of_class_names(model, adapters, images, tmp_path):
    """From a file, with what an adapter learned; the numbers are those of the library."""
    texts = ("a dog on_grass", "two cats")
    picture = images / "test" / "cat" / "0.png"
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    clip = clipbias.load(model)
    pixels = transforms.test_image(transforms.decode_picture(picture.read_bytes(), ""), clip.preprocessing.resizing)
    normal = clip.preprocessing.normalize(pixels[None])
    bound = read_adapter(adapters[0]).bind(clip).with_classes(texts, free_text=True)
    settings = {"images": str(picture), "texts": str(tmp_path / "texts.txt"), "adapters": adapters[0]}
    assert answer_here(experiments.predict, settings | {"model": str(model)}, tmp_path / "out")[0] == 0
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "classes" not in entry
    logits = jax.jit(bound.task.logits)(clip.params, bound.learnables, normal)[0]
    expected = dict(zip(texts, jax.nn.softmax(logits).tolist(), strict=True))
    assert dict(zip(entry["texts"], entry["probabilities"], strict=True)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def calibrated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose scores of thirty calibration images were drawn."""
    clip = clipbias.load(model)
    path = tmp_path_factory.mktemp("calibrated") / "a.safetensors"
    rng = np.random.default_rng(3)
    calibration = Calibration.of(rng.normal(0, 0.5, (30, 3)), rng.integers(0, 3, 30), 14.0)
    save_random(clip, "bias", CLASS_NAMES, path, calibration=calibration)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Eighty small pictures of noise, one of which is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(80):
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).save(folder / f"{number:03d}.png")
    (folder / "043.png").write_bytes(b"broken")
    return sorted(folder.iterdir())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.ci
def test_sets_and_none_of_these(calibrated, images, tmp_path):
    """Printed and saved as the model's own prediction has them."""
    picture = images / "test" / "cat"
    settings = {"images": str(picture), "adapters": str(calibrated), "coverage": 0.8, "accepted": 0.5, "top": 1}
    printed, _ = succeed_here(experiments.predict, settings, tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    files = sorted(picture.iterdir())
    prediction = clipbias.load_adapter(calibrated).predict(files, coverage=0.8, accepted=0.5)
    assert [tuple(entry["set"]) for entry in entries] == prediction.sets
    assert [entry["rejected"] for entry in entries] == prediction.rejected.tolist()
    for number, line in enumerate(printed.splitlines()):
        words = "none of these" if prediction.rejected[number] else f"80 % set: {', '.join(prediction.sets[number])}"
        assert f" %; {words}; zero-shot " in line
    # For other classes the adapter is not calibrated, which a sentence says.
    printed, _ = succeed_here(experiments.predict, settings | {"classes": "cat,dog"}, tmp_path / "other")
    assert printed.startswith("no prediction sets: there are no scores of calibration images for these classes")
    assert "set" not in json.loads((tmp_path / "other" / "predictions.json").read_text())[0]


@pytest.mark.ci
def test_a_table_goes_on_where_it_was_killed(calibrated, photos, cache, tmp_path, capsys):
    """With the lines of a table that nobody disturbed."""
    table = tmp_path / "answers.csv"
    settings = {"images": str(photos[0].parent), "adapters": str(calibrated), "output": str(table), "batch_size": 1}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    process = start("predict", *arguments, f"--workdir={tmp_path / 'out'}", cache=cache)
    while process.poll() is None and (not table.exists() or table.read_bytes().count(b"\n") < 6):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    killed = len(rows_of(table))
    assert process.returncode == -signal.SIGKILL and 4 < killed < 80
    with table.open("ab") as file:
        file.write(f"{photos[killed]},ca".encode())
    settings["batch_size"] = 4
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0
    printed = capsys.readouterr().out
    assert f"{killed} of 80 images have a line in {table} already" in printed
    assert f"{80 - killed} lines written to {table}" in printed
    rows = rows_of(table)
    assert [row["image"] for row in rows] == [str(path) for path in photos]
    model = clipbias.load_adapter(calibrated)
    prediction = model.predict(photos, on_image_error="skip", batch_size=4)
    for number, row in enumerate(rows):
        if number == 43:
            assert row["error"].startswith(f"the image {photos[43]} cannot be decoded") and not row["class"]
            continue
        assert row["class"] == prediction.classes[number] and not row["error"]
        assert tuple(filter(None, row["set"].split(" | "))) == prediction.sets[number]
        assert row["rejected"] == str(prediction.rejected[number]).lower()
    # A finished table is left alone, and lines of other settings or of another adapter are not added.
    before = table.read_bytes()
    assert answer_here(experiments.predict, settings, tmp_path / "out")[0] == 0 and table.read_bytes() == before
    photos[3].write_bytes(photos[3].read_bytes() + b" ")  # another picture
    other = refusal_here(experiments.predict, settings, tmp_path / "out")
    assert str(photos[3]) in other and str(table) in other and "--config.output" in other
    other = refusal_here(experiments.predict, settings | {"classes": "cat,dog", "zero_shot": False}, tmp_path / "out")
    assert "has lines of other settings (adapter, model or classes, prediction sets, columns)" in other
