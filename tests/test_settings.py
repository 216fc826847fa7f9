"""Configurations found by name, their settings as help and the page show them, and what answers a name that is none."""

import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import configs
from clipbias.cli import COMMANDS, folder, overview
from clipbias.clip.precision import CHOICES
from clipbias.errors import ClipbiasError
from clipbias.explain.verdict_words import FEWEST_IMAGES
from experiments import help_page, settings
from experiments.command_line import read_config
from tests.documents import ROOT
from tools import make_settings_page

BINARIES = [name for name in COMMANDS if name in settings.files()]


def test_the_page_of_settings_is_that_of_the_configurations() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == make_settings_page.page(), "run python -m tools.make_settings_page docs/settings.md"


@pytest.mark.parametrize("binary", BINARIES)
def test_help_tells_every_setting_and_what_it_means(binary: str) -> None:
    for name in help_page.of_binary(binary):
        config = settings.load(f"configs/{name}.py")
        found = settings.describe(config, name, binary)
        assert {one.name for one in found} == settings.flat(config).keys()
        assert [one.name for one in found if not one.meaning.endswith((".", ")"))] == []
    text = help_page.render(binary, "What it does.\n\nMore.\n", "clipbias train", config, f"configs/{name}.py")
    assert all(f"--config.{one.name}  ({one.kind}; " in text for one in found)


def test_comments_are_taken_from_the_file_that_brings_a_setting_or_from_the_binarys_own() -> None:
    config = settings.load("configs/demo.py")
    found = {one.name: one for one in settings.describe(config, "demo", "table1")}
    rate, shots = found["learning_rate"], found["shots"]
    assert rate.default == config.learning_rate and rate.common
    assert rate.meaning == "Learning rate of the first epoch after the warm-up, from which it falls along a cosine."
    assert shots.meaning == "Training images per class." and shots.kind == "whole numbers" and not shots.common
    own = {
        one.name: one.meaning for one in settings.describe(settings.load("configs/evaluate.py"), "evaluate", "evaluate")
    }
    assert own["model"].startswith("The frozen model; empty takes the adapter's")
    options = {one.name: one for one in settings.describe(settings.load("configs/train.py:ivlp"), "train", "train")}
    assert options["method_options.vision_tokens"].meaning == "`V`; 0 leaves the images as they are."
    assert options["dtype"].kind == " | ".join(CHOICES) and options["dry_run"].kind == "True | False"


MEANT = [
    ("lr", "learning_rate"),
    ("wd", "weight_decay"),
    ("lerning_rate", "learning_rate"),
    ("batchsize", "batch_size"),
    ("num_shots", "shots"),
    ("run", "mesh.run"),
    ("learning-rate", "learning_rate"),
]


@pytest.mark.parametrize(("given", "meant"), MEANT)
def test_a_setting_that_is_none_is_answered_with_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(ClipbiasError, match=rf"no setting --config.{given}; did you mean --config\.{meant}\b"):
        read_config(["train", f"--config.{given}=1"], "configs/train.py")
    with pytest.raises(ClipbiasError, match=r"no setting --config\.zzz\.$"):
        read_config(["train", "--config.zzz=1"], "configs/train.py")


def test_a_flag_that_is_none_is_answered_with_the_setting() -> None:
    config = settings.load("configs/train.py")
    assert settings.unknown_flag("model", config, []) == "there is no flag --model; did you mean --config.model?"
    assert settings.unknown_flag("relevence", config, ["relevancy"]).endswith("did you mean --relevancy?")


def test_configurations_are_found_in_the_working_folder_and_else_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, rest, config = read_config(["x", "--config", "configs/train.py:ivlp", "--workdir=w"], "configs/demo.py")
    assert (given, rest, config.method) == ("configs/train.py:ivlp", ["x", "--workdir=w"], "ivlp")
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "demo.py", tmp_path / "configs" / "train.py")
    assert read_config(["x"], "configs/train.py:full")[2].seeds == (1, 2, 3)


def test_of_a_setting_given_twice_the_last_counts() -> None:
    words = ["x", "--config.seeds=1", "--config.shots", "4", "--config.seeds=2", "--config.dry_run", "--workdir=w"]
    rest = read_config(words, "configs/demo.py")[1]
    assert rest == ["x", "--config.shots=4", "--config.seeds=2", "--config.dry_run", "--workdir=w"]


BROKEN = {
    "x = (\n": "line 1, is no Python",
    "x = 1\n": "defines no get_config",
    "def get_config():\n    return {}\n": "returns no ConfigDict",
    "def get_config():\n    return 1 / 0\n": "cannot be used: ZeroDivisionError: division by zero",
    "import nothing_of_this_name\n": "cannot be used: ModuleNotFoundError",
}


@pytest.mark.parametrize("source", BROKEN)
def test_what_is_no_configuration_is_told_in_a_sentence(source: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(ClipbiasError, match=BROKEN[source]):
        settings.load(str(tmp_path / "own.py"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("configs/trian.py", "no configuration file configs/trian.py; did you mean configs/train.py"),
        ("configs/demo.py:ful", "has no preset 'ful'; did you mean full"),
        ("configs/evaluate.py:x", "has no presets; leave out :x"),
        ("elsewhere/demo.py", "no configuration file elsewhere/demo.py"),
    ],
)
def test_configurations_that_are_not_there(given: str, message: str) -> None:
    with pytest.raises(ClipbiasError, match=message):
        settings.load(given)


def test_a_first_look_has_images_enough_for_a_verdict() -> None:
    assert settings.load("configs/explain.py:quick").image_limit >= FEWEST_IMAGES


def test_presets_are_told_and_all_of_them_are_there() -> None:
    for name in settings.files():
        for preset in settings.presets(name) if name != "train" else ("ivlp", "tip_adapter_f"):
            assert isinstance(settings.load(f"configs/{name}.py:{preset}"), ConfigDict)
    assert {"bias", "ivlp_matched", "clip_lora"} <= settings.presets("train").keys()


def test_every_binary_is_a_command_and_is_listed_with_its_first_line() -> None:
    runnable = {
        path.stem for path in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' in path.read_text()
    }
    assert runnable == {*COMMANDS} and folder() == ROOT and Path(configs.__file__).parent == settings.FOLDER
    assert "  train        Tunes one method on one dataset" in overview()
