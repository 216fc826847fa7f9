"""The check of a bundle: what it confirms, and what it says of each thing that is wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clipbias.bundles import numbers
from clipbias.bundles.check import Findings, check_bundle
from clipbias.bundles.files import INDEX, read_bundle
from clipbias.bundles.write import write_bundle
from clipbias.errors import ClipbiasError
from tests.bundles.synthetic import alter, change_lines, flip, make_workdir
from tests.documents import ROOT
from tools.check_bundle import main


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle([make_workdir(tmp_path / "run")], tmp_path / "bundle")


def check(folder: Path, **options) -> Findings:
    options = {"hub": lambda name, revision: None, **options}
    return check_bundle(read_bundle(folder), folder, **options)


def test_a_whole_bundle_agrees(bundle: Path) -> None:
    found = check(bundle)
    assert found.differs == [] and len(found.recomputed) == 7
    agreed = "\n".join(found.agrees)
    files = "1 of 1 files have the hash"
    for words in (files, "7 of 7 evaluations", "7 have log-probabilities", "5 of 5 means and paired"):
        assert words in agreed
    assert "13 of 13 lists of images" in agreed  # of 7 evaluations and 6 draws
    assert "those of the embedded model demo" in agreed
    assert not [path for path in bundle.iterdir() if path.suffix not in (".json", ".npz")]


def test_base_to_new(tmp_path: Path) -> None:
    workdir = make_workdir(tmp_path / "run", protocol="base_to_new", seeds=(1, 2))
    found = check(write_bundle([workdir], tmp_path / "bundle"))
    assert found.differs == []
    # Means of three methods in base, new and H, and two differences to the best in each.
    assert any("15 of 15 means and paired" in line for line in found.agrees)


def first_key(folder: Path, method: str = "bias") -> str:
    return next(line["key"] for line in read_bundle(folder).lines if line["method"] == method)


def test_a_flipped_prediction(bundle: Path) -> None:
    """From right to wrong: the accuracy, the hash, and the log-probabilities say so; the summary no longer follows."""
    key, run = first_key(bundle), next(iter(read_bundle(bundle).datasets.values())).predictions
    image = int(np.flatnonzero(run[key, "test"].right)[0])
    label = (int(run[key, "test"].images.labels[image]) + 1) % 10
    alter(bundle, lambda members: flip(members, f"predicted/{key}-test.npy", image, label))
    found = check(bundle)
    told = "\n".join(found.differs)
    assert "on demo/fashion, 16 shots, seed 1: " in told and " % is reported, the predictions give " in told
    assert "not those whose hash is listed" in told
    assert "contradict each other on 1 images" in told
    assert "a mean of" in told and "a difference of" in told
    assert key not in found.recomputed and len(found.recomputed) == 6


def test_a_prediction_flipped_from_wrong_to_wrong(bundle: Path) -> None:
    key, run = first_key(bundle), next(iter(read_bundle(bundle).datasets.values())).predictions
    image = int(np.flatnonzero(~run[key, "test"].right)[0])
    others = {0, 1, 2} - {int(run[key, "test"].predicted[image]), int(run[key, "test"].images.labels[image])}
    alter(bundle, lambda members: flip(members, f"predicted/{key}-test.npy", image, others.pop()))
    (told,) = check(bundle).differs
    assert "not those whose hash is listed" in told


def test_a_wrong_pick(bundle: Path) -> None:
    change_lines(bundle, lambda lines: lines[1]["picks"].update(train="0" * 16))
    (told,) = check(bundle).differs
    assert told.endswith("seed 1: the training images are not the published picks of this seed.")


def test_picks_of_the_benchmark(tmp_path: Path) -> None:
    """Without the images, the published hashes of 16 shots and the catalogue's counts are all that is compared."""
    bundle = write_bundle([make_workdir(tmp_path / "run", methods=("bias",), seeds=(1, 4))], tmp_path / "bundle")

    def rename(lines: list[dict]) -> None:
        for line in lines:
            line["dataset"] = "dtd"

    change_lines(bundle, rename)
    index = json.loads((bundle / INDEX).read_text())
    index["datasets"] = {"dtd": index["datasets"]["demo/fashion"]}
    (bundle / INDEX).write_text(json.dumps(index))
    found = check(bundle)
    told, unchecked = "\n".join(found.differs), "\n".join(found.unchecked)
    assert "DTD, 16 shots, seed 1: the training images are not the published picks" in told
    assert "seed 4: the training images" not in told and "picks of few_shot at 16 shots" in unchecked
    assert "1120 test images of 10 classes, where the benchmark has 1692 of 47" in told
    assert "DTD: the names and labels of test images, which need the dataset (--data_dir)." in found.unchecked


def test_another_models_weights(bundle: Path) -> None:
    index = json.loads((bundle / INDEX).read_text())
    index["model"]["fingerprint"] = "0" * 64
    (bundle / INDEX).write_text(json.dumps(index))
    told = "\n".join(check(bundle).differs)
    assert "The weights are not those of the embedded model demo." in told
    assert told.count("the weights are not those of the bundle's model demo") == 7


def test_weights_of_the_hub(bundle: Path) -> None:
    index = json.loads((bundle / INDEX).read_text())
    index["model"] |= {"name": "openai/clip", "files": {"model.safetensors": "a" * 64}}
    (bundle / INDEX).write_text(json.dumps(index))
    asked = []

    def hub(name: str, revision: str | None) -> dict[str, str]:
        asked.append(name)
        return {"model.safetensors": "b" * 64}

    (told,) = check(bundle, hub=hub).differs
    assert told.startswith("model.safetensors is not the hub's file of openai/clip: SHA-256 aaaa")
    assert check(bundle, hub=lambda name, revision: {"model.safetensors": "a" * 64}).differs == []
    found = check(bundle)
    assert asked == ["openai/clip"] and any("or does not answer" in line for line in found.unchecked)


def test_a_missing_seed(bundle: Path) -> None:
    change_lines(bundle, lambda lines: lines.remove(next(x for x in lines if x["seed"] == 3 and x["method"] == "ivlp")))
    told = check(bundle).differs
    assert any(line.endswith("on demo/fashion, 16 shots (few_shot): seed 3 is missing.") for line in told)
    index = json.loads((bundle / INDEX).read_text())
    index["sources"][0]["methods"] = ["zero_shot", "bias"]  # a forger hides that it was planned; others have the seed
    (bundle / INDEX).write_text(json.dumps(index))
    assert any(line.endswith("(few_shot): seed 3 is missing.") for line in check(bundle).differs)


def test_changed_settings_and_numbers(bundle: Path) -> None:
    change_lines(bundle, lambda lines: lines[2].update(seed=1))
    assert any("the key is not the hash of the settings" in line for line in check(bundle).differs)


def test_a_reported_calibration_error_and_standard_error(bundle: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        summary = json.loads(members["summary.json"])
        summary["means"][1]["error"] *= 0.5
        members["summary.json"] = json.dumps(summary).encode()

    alter(bundle, change)
    change_lines(bundle, lambda lines: lines[0]["calibration"].update(ece=lines[0]["calibration"]["ece"] + 3))
    told = check(bundle).differs
    assert len(told) == 2 and "a calibration error of" in told[0] and "a mean of" in told[1]


def test_files(bundle: Path, tmp_path: Path) -> None:
    (bundle / "photo.jpg").write_text("")
    data = (bundle / "demo_fashion.npz").read_bytes()
    assert check(bundle).differs == ["photo.jpg is no part of a bundle."]
    index = (bundle / INDEX).read_text()
    (bundle / INDEX).write_text(re.sub('"sha256": "....', '"sha256": "0000', index))
    assert "demo_fashion.npz is not the file whose hash bundle.json lists." in check(bundle).differs
    (bundle / INDEX).write_text(index)
    (bundle / "demo_fashion.npz").write_bytes(data[:-9])
    with pytest.raises(ClipbiasError, match="is not the file of a bundle"):
        read_bundle(bundle)
    with pytest.raises(ClipbiasError, match="exists already"):
        write_bundle([tmp_path / "run"], bundle)
    with pytest.raises(ClipbiasError, match=r"holds no results\.jsonl"):
        write_bundle([tmp_path / "run" / "adapters"], tmp_path / "other")


def test_nothing_in_a_file_is_run(bundle: Path) -> None:
    key = first_key(bundle)
    stream = np.array([print], dtype=object)

    def change(members: dict[str, bytes]) -> None:
        import io

        pickled = io.BytesIO()
        np.save(pickled, stream, allow_pickle=True)
        members[f"predicted/{key}-test.npy"] = pickled.getvalue()

    alter(bundle, change)
    with pytest.raises(ClipbiasError, match="allow_pickle"):
        read_bundle(bundle)


def test_numbers_by_hand() -> None:
    """A paired difference of two runs on four images, and calibration in two bins."""
    images = read_images(4)
    one, other = (numbers.Predictions(images, np.array(x), None) for x in ([0, 0, 0, 1], [0, 0, 1, 1]))
    assert [numbers.accuracy(one), numbers.accuracy(other)] == [75, 50]
    found = numbers.difference(numbers.mean([one]), numbers.mean([other]))
    assert found.value == 25 and found.error == pytest.approx(100 * np.std([0, 0, 1, 0], ddof=1) / 2)
    assert not found.is_clear
    sure = np.log(np.array([0.9, 0.9, 0.5, 0.5]))
    log_probs = np.c_[sure, np.full((4, 4), -9.0), sure, sure].astype(np.float16).astype(np.float32)
    value, tolerance = numbers.calibration_error(numbers.Predictions(images, np.array([0, 0, 0, 1]), log_probs))
    assert value == pytest.approx(100 * (abs(2 - 1.8) + abs(1 - 1)) / 4, abs=0.05) and tolerance < 0.1


def read_images(count: int):
    from clipbias.bundles.files import ImageList

    return ImageList(tuple(map(str, range(count))), np.zeros(count, np.int64), ("a", "b"))


def test_the_bundles_of_this_repository(capsys: pytest.CaptureFixture) -> None:
    folders = [str(path.parent) for path in ROOT.glob(f"results/*/{INDEX}")]
    assert folders and main(folders) == 0
    assert "differs" not in capsys.readouterr().out
