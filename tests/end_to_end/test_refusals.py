"""Bad input: one clear sentence and exit status 1."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias.errors import ClipbiasError
from experiments import evaluate, explain, export, predict, prepare_data, train
from tests import bad_files, helpers
from tests.end_to_end import conftest as binaries

DATA = binaries.ROOT / "tests" / "data_files"
ADAPTER, BASE = str(DATA / "adapter_format_2.safetensors"), str(DATA / "tiny_quick_gelu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own images: two classes, one with a single training image, one image damaged."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, counts in (("train", {"cat": 3, "dog": 1}), ("test", {"cat": 2, "dog": 2})):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(root / split / name / f"{i}.png")
    (root / "test" / "dog" / "0.png").write_bytes(bad_files.PICTURES["a PNG's beginning"])
    return root


def refused(model: Path | str, workdir: Path, **settings: Any) -> str:
    """The sentence of `train`."""
    return binaries.refusal_here(train, {"model": str(model), "epochs": 2, **settings}, workdir)


REFUSED = [
    ("table1 --config.lerning_rate=1", "setting 'lerning_rate'. Did you mean \"learning_rate\""),
    ("table1 --model=demo", "there is no flag --model; did you mean --config.model?"),
    ("train --config.shots=four", "shots is 'four'; it must be a whole number from 1 to 2,147,483,647, or None"),
    ("train --config.lr=0.1", "there is no setting 'lr'; did you mean learning_rate?"),
    ("train --config.options.steps=6", "there is no setting 'options.steps'; did you mean method_options?"),
    ("show --workdir=workdir/digits", "show has no --workdir; see --help"),
    ("trian", "there is no command 'trian'; did you mean train?"),
    ("train --config=SYNTAX", "SyntaxError: "),
    ("table1 demo", "unexpected argument 'demo'; settings are given as --config.name=value"),
    ("table1 --config=README.md", "there is no configuration file 'README.md'"),
    ("train --config.shots", "Missing value for flag --config.shots"),
    ("distil --config.mesh.run.x=2", "there is no setting 'mesh.run.x'; see --help."),
    (
        "train --config=configs/train.py --config.seed=1 --config configs/train.py:ivlp",
        "give one --config, not configs/train.py and configs/train.py:ivlp",
    ),
    ("train --config=RAISES", "ZeroDivisionError: division by zero"),
]
HELPED = [
    ("", ["  table1         Trains methods x datasets"]),
    ("predict --help", ["\n  --config.top=5   ", "    clipbias predict --config.images=photos "]),
    (  # the file after a setting that is its own
        "train --config.method_options.depth=7 --config.epochs=3 --config configs/train.py:ivlp --config.epochs=2 -h",
        ["==== ivlp ", "\n  --config.epochs=2 ", "\n  --config.method_options.depth=7 "],
    ),
    ("show --helpfull", ["\n  --config.every_run=False\n      Whether every run of a sweep "]),
    ("table1 --config.shots=4,8 --config.shots=2,16 --config.part=None --help", ['\n  --config.shots="(2, 16)" ']),
    (
        "table1 --config.methods=vpt,/a/b.py --config.datasets ~/d --config.learning_rate=1 --helpfull",
        ["('vpt', '/a/b.py')", "('~/d',)", "--config.given=\"('learning_rate',)\""],
    ),
]


@pytest.mark.ci
def test_command_lines_are_refused_in_one_sentence_or_answered_with_help(cache, tmp_path):
    (tmp_path / "syntax.py").write_text("x = (\n")
    (tmp_path / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    files = {"SYNTAX": str(tmp_path / "syntax.py"), "RAISES": str(tmp_path / "raises.py")}
    lines = [re.sub("[A-Z]{4,}", lambda match: files.get(match[0], match[0]), line) for line, _ in [*REFUSED, *HELPED]]
    done = binaries.in_forks([("clipbias", line.split()) for line in lines], cache=cache)
    for result, (line, expected) in zip(done, REFUSED, strict=False):
        assert expected in binaries.sentence(result["status"], result["said"]), line
    for result, (line, shown) in zip(done[len(REFUSED) :], HELPED, strict=True):
        assert result["status"] == 0 and all(words in result["said"] for words in shown), (line, result["said"])


@pytest.mark.ci
def test_corrupt_image_is_named_or_skipped_and_few_images_are_all_used(model, pictures, tmp_path, caplog):
    few = {"dataset": "folder", "data_dir": str(pictures), "shots": 2}
    assert "0.png" in refused(model, tmp_path / "w", **few)
    settings = {"model": str(model), "epochs": 2, "method": "taskres", "method_options": {}, **few}
    binaries.succeed_here(train, settings | {"on_image_error": "skip"}, tmp_path / "w")
    result = (tmp_path / "w" / "result.json").read_text()
    assert '"skipped_images": 1' in result
    binaries.succeed_here(train, settings, tmp_path / "w")  # the folder remembers, and its run is finished
    assert (tmp_path / "w" / "result.json").read_text() == result
    (tmp_path / "w" / "result.json").unlink()
    assert "0.png" in refused(workdir=tmp_path / "w", **settings | {"on_image_error": "raise"})
    assert "dog has 1" in caplog.text
    study = {"adapters": str(tmp_path / "w"), "dataset": "folder", "data_dir": str(pictures)}
    assert "0.png" in binaries.refusal_here(explain, study | {"sections": "predictions"}, tmp_path / "s")
    binaries.succeed_here(explain, study | {"sections": "predictions", "on_image_error": "skip"}, tmp_path / "s")
    binaries.succeed_here(explain, study | {"sections": "vision_attention"}, tmp_path / "s")


@pytest.mark.ci
def test_an_adapter_of_another_model(trained, tmp_path):
    folder, _, _ = trained
    adapter = str(folder / "adapter.safetensors")
    printed, _ = binaries.succeed_here(evaluate, {"adapters": adapter}, tmp_path / "e")
    assert "bias on demo/digits" in printed
    binaries.assert_recorded(folder, "result.json", "adapter.safetensors")
    binaries.assert_recorded(tmp_path / "e", "result.json")
    helpers.tiny_checkpoint(tmp_path / "other", seed=1)
    other = {"adapters": adapter, "model": str(tmp_path / "other")}
    assert "does not fit" in binaries.refusal_here(evaluate, other, tmp_path / "f")
    again = {"adapters": adapter, "split": "val"}
    assert "holds the evaluation of another adapter, of other texts or images" in binaries.refusal_here(
        evaluate, again, tmp_path / "e"
    )


@pytest.mark.ci
def test_folders_that_may_not_be_written(model, cache, tmp_path):
    """Permission bits close the work folder and the cache; root is made to heed them."""
    heed = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if heed and shutil.which(heed[0]) is None:
        pytest.skip("run as root, and there is no setpriv to give up its rights")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    flags = [f"--config.model={model}", f"--workdir={closed}", "--config.dataset=demo/digits"]
    command = [*heed, sys.executable, "-m", "experiments.train", *flags]
    settings = {**binaries.environment(cache), "XDG_CACHE_HOME": str(closed)}
    del settings["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(command, cwd=binaries.ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: cannot write {closed}: Permission denied; choose another --workdir." in done.stderr
    assert f"compiled programs are not kept: cannot write {closed}" in done.stderr
    assert not list(closed.iterdir())


def test_mistakes_are_one_sentence(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    full, out, nowhere = (str(tmp_path / name) for name in ("full", "out", "nowhere"))
    draw = {"action": "draw", "output": out}
    not_there = {"dataset": "folder", "data_dir": nowhere, "model": "nobody/nothing"}  # told before a download
    for command, settings, message in (
        (export, {"adapters": ADAPTER}, "give an adapter and the folder to write"),
        (export, {"adapters": ADAPTER, "output": full, "model": BASE}, "exists already"),
        (export, {"adapters": ADAPTER, "output": out, "model": "demo"}, "does not fit"),
        (prepare_data, {}, "check needs --config.data_dir"),
        (prepare_data, draw, "draw needs --config.datasets with one name"),
        (train, not_there, f"there is no folder {nowhere}; check data_dir."),
        (explain, not_there, f"there is no folder {nowhere}; check data_dir."),
        (explain, {"sections": "relevance"}, "unknown section 'relevance'"),
        (explain, {}, "no dataset to explain; give --config.dataset=NAME"),
        (predict, {"classes": "a"}, "there are no images; give --config.images"),
        (predict, {"images": "pyproject.toml", "classes": "a", "texts": "b"}, "texts replace class names"),
        (
            predict,
            {"images": "pyproject.toml", "adapters": ADAPTER, "model": BASE, "template": "{}"},
            "a photo of a {}.', not '{}'; leave out --config.template",
        ),
        (
            explain,
            {"adapters": ADAPTER, "model": BASE, "dataset": "demo/digits", "template": "{}"},
            "a photo of a {}.', not '{}'; leave out --config.template",
        ),
        (predict, {"images": "pyproject.toml", "texts": "/nowhere.txt"}, "there is no file of texts /nowhere.txt"),
    ):
        workdir = tmp_path / "work" if command in (train, evaluate, explain, predict) else ""
        assert message in binaries.refusal_here(command, settings, workdir)
    with pytest.raises(ClipbiasError, match=f"no folder '{nowhere}'"):  # from Python, too
        clipbias.fit("nobody/nothing", "bias", nowhere)
    assert not Path(out).exists() and [path.name for path in Path(full).iterdir()] == ["precious"]
