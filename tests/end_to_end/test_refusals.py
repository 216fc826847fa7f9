"""Bad input: one clear sentence and exit status 1."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import experiments.evaluate
import experiments.train
from clipbias.errors import ClipbiasError
from tests import helpers
from tests.end_to_end import binaries


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
    (root / "test" / "dog" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    return root


def refused(model: Path | str, workdir: Path, **settings: Any) -> str:
    """The sentence of `train`."""
    return binaries.refusal_here(experiments.train, {"model": str(model), "epochs": 2, **settings}, workdir)


REFUSED = [
    (["--config=configs/demo.py", "--config.methods=('bais',)"], "unknown method 'bais'; did you mean 'bias'?"),
    (["--config=configs/demo.py", "--config.lerning_rate=1"], "learning_rate"),
    (["--config=configs/nowhere.py"], "configs/nowhere.py"),
    (["--config.lerning_rate=1"], "Did you mean"),  # of the default configuration
    (["--config=README.md"], "README.md, line "),
    (["--config=configs/demo.py", "--config.topology=v5e:4x4"], "nothing can be run on v5e:4x4; add --config.dry_run"),
    (["--config=configs/train.py:biass"], "unknown method 'biass'; did you mean 'bias'? Methods: zero_shot, coop"),
]


def test_table1_refuses(cache: Path, tmp_path: Path) -> None:
    given = [("experiments.table1", [*arguments, f"--workdir={tmp_path}"]) for arguments, _ in REFUSED]
    for done, (arguments, expected) in zip(binaries.in_forks(given, cache=cache), REFUSED, strict=True):
        assert expected in binaries.sentence(done["status"], done["said"]), arguments


def test_unknown_dataset(model: Path, tmp_path: Path) -> None:
    said = refused(model, tmp_path, dataset="demo/digit")
    assert "there is no dataset 'demo/digit'; did you mean demo/digits" in said


def test_missing_and_truncated_weights(model: Path, tmp_path: Path) -> None:
    said = refused(tmp_path / "nothing", tmp_path / "w")
    assert "no folder" in said
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    said = refused(broken, tmp_path / "w")
    assert "model.safetensors is damaged or incomplete" in said


def test_corrupt_image_is_named_or_skipped_and_few_images_are_all_used(
    model: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"dataset": "folder", "data_dir": str(pictures), "shots": 2}
    assert "0.png" in refused(model, tmp_path / "refused", **own)
    settings = {"model": str(model), "epochs": 2, "on_image_error": "skip", **own}
    binaries.succeed_here(experiments.train, settings, tmp_path / "w")
    assert '"skipped_images": 1' in (tmp_path / "w" / "result.json").read_text()
    assert "class 1 has 1" in caplog.text


def test_an_adapter_of_another_model(model: Path, tmp_path: Path) -> None:
    settings = {"model": str(model), "dataset": "demo/digits", "shots": 1, "epochs": 2}
    binaries.succeed_here(experiments.train, settings, tmp_path / "w")
    adapter = str(tmp_path / "w" / "adapter.safetensors")
    printed, _ = binaries.succeed_here(experiments.evaluate, {"adapter": adapter}, tmp_path / "e")
    assert "bias on demo/digits" in printed
    binaries.assert_recorded(tmp_path / "w", "result.json", "adapter.safetensors")
    binaries.assert_recorded(tmp_path / "e", "result.json")
    helpers.tiny_checkpoint(tmp_path / "other", seed=1)
    other = {"adapter": adapter, "model": str(tmp_path / "other")}
    said = binaries.refusal_here(experiments.evaluate, other, tmp_path / "f")
    assert "holds the result of a run with other settings" in binaries.refusal_here(
        experiments.evaluate, other, tmp_path / "e"
    )
    assert "does not fit" in said


def test_folders_that_may_not_be_written(model: Path, cache: Path, tmp_path: Path) -> None:
    """Permission bits close the work folder and the cache; root is made to heed them."""
    heed = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if heed and shutil.which(heed[0]) is None:
        pytest.skip("run as root, and there is no setpriv to give up its rights")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    own = [f"--config.model={model}", f"--workdir={closed}", "--config.dataset=demo/digits"]
    command = [*heed, sys.executable, "-m", "experiments.train", *own]
    settings = {**binaries.environment(cache), "XDG_CACHE_HOME": str(closed)}
    del settings["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(command, cwd=binaries.ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: cannot write {closed}: Permission denied; choose another --workdir." in done.stderr
    assert f"compiled programs are not kept: cannot write {closed}" in done.stderr
    assert not list(closed.iterdir())


def test_an_evaluation_is_not_written_over_by_that_of_other_images(tmp_path: Path) -> None:
    experiments.evaluate.keep_evaluation(tmp_path, "one")
    (tmp_path / experiments.evaluate.RESULT).write_text('{"fingerprint": "one"}')
    experiments.evaluate.keep_evaluation(tmp_path, "one")
    with pytest.raises(ClipbiasError, match="holds the evaluation of another adapter or of other images"):
        experiments.evaluate.keep_evaluation(tmp_path, "other")
