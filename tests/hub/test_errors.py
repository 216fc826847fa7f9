"""One sentence for whatever stops a download, and commands in it that work as printed."""

import errno
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.cli.hf import main as hf

import clipbias
from clipbias.clip.hub import command, parse
from clipbias.clip.pins import PINS
from clipbias.errors import ClipbiasError
from tests.hub.server import Hub, Repository
from tests.reference.formats import FORMATS

DEFAULT = "openai/clip-vit-base-patch16"


def refusal(source: str) -> str:
    with pytest.raises(ClipbiasError) as refused:
        clipbias.load(source)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def run_hf(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command line of the hub's own program in this process."""
    words = shlex.split(line)
    assert words[0] == "hf"
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_UPDATE_CHECK", True, raising=False)
    with pytest.raises(SystemExit) as ended:
        hf()
    assert ended.value.code in (None, 0)


def test_a_download_that_breaks_off_goes_on(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repositories["someone/small"] = Repository(files)
    size = len(files["model.safetensors"])
    hub.break_at["small/model.safetensors"] = size // 2
    message = refusal("someone/small")
    assert "broke off" in message
    assert "the same call goes on" in message
    (part,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    arrived = part.stat().st_size
    assert 0 < arrived <= size // 2
    hub.sent.clear()
    clipbias.load("someone/small")
    assert hub.sent["someone/small/model.safetensors"] == size - arrived
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def test_a_part_that_is_not_the_files_is_thrown_away(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repositories["someone/small"] = Repository(files)
    hub.break_at["small/model.safetensors"] = len(files["model.safetensors"]) // 2
    refusal("someone/small")
    (part,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    part.write_bytes(bytes(part.stat().st_size))
    assert "arrived damaged" in refusal("someone/small")
    clipbias.load("someone/small")


def test_a_pinned_file_that_is_another(hub: Hub, files: dict[str, bytes]) -> None:
    name = "openai/clip-vit-large-patch14"
    hub.repositories[name] = Repository(files, PINS[name].commit)
    assert re.search(r"instead of a2bf730a.*was not downloaded", refusal(name))
    assert "model.safetensors" not in hub.downloaded()


def test_no_such_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal("someone/nothing")
    assert "no folder 'someone/nothing' here, and the Hugging Face hub has no repository of that name" in message
    (hint,) = re.findall(r"`(hf .*?)`", message)
    run_hf(f"{hint} --help", monkeypatch)


def test_no_such_revision(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repositories["someone/small"] = Repository(files)
    message = refusal("someone/small@v2")
    assert "no revision 'v2'" in message
    (hint,) = re.findall(r"and '(.*?)' is the newest", message)
    assert clipbias.load(hint).revision


def test_terms_that_nobody_accepted(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["someone/gated"] = Repository(files)
    hub.gated.add("someone/gated")
    message = refusal("someone/gated")
    assert f"accept them at {hub.endpoint}/someone/gated" in message
    (hint,) = re.findall(r"`(hf .*?)`", message)
    run_hf(f"{hint} --help", monkeypatch)


def test_a_private_repository_is_read_with_a_token(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["someone/private"] = Repository(files)
    hub.private.add("someone/private")
    assert "run `hf auth login` if it is private" in refusal("someone/private")
    Path(constants.HF_TOKEN_PATH).write_text("hf_token")
    assert clipbias.load("someone/private").revision


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["someone/small"] = Repository(files)
    size = len(files["model.safetensors"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, size - 1))
    message = refusal("someone/small")
    assert re.search(r"model.safetensors of 'someone/small' needs .* free some, or set HF_HUB_CACHE", message)
    assert "model.safetensors" not in hub.downloaded()


def test_a_disk_that_fills_up(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.repositories["someone/small"] = Repository(files)
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        assert re.search(r"cannot write .*No space left.*HF_HUB_CACHE", refusal("someone/small"))
    clipbias.load("someone/small")


def test_a_cache_that_cannot_be_written(hub: Hub, files: dict[str, bytes], monkeypatch, tmp_path: Path) -> None:
    hub.repositories["someone/small"] = Repository(files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/none")
    assert "cache" in refusal("someone/small")


def test_offline_without_a_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The command that is printed downloads, where there is a network, what is then read as a folder."""
    files = {path.name: path.read_bytes() for path in (FORMATS / "flax").iterdir()}
    hub.repositories[DEFAULT] = Repository(files | {"tf_model.h5": b"", "pytorch_model.bin": b""}, PINS[DEFAULT].commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(DEFAULT)
    (hint,) = re.findall(r"`(hf download .*?)`", message)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    run_hf(hint, monkeypatch)
    (folder,) = re.findall(r"/\S+", capsys.readouterr().out)
    assert clipbias.load(folder).fingerprint == clipbias.load(FORMATS / "flax").fingerprint
    assert not {"tf_model.h5", "pytorch_model.bin"} & {*hub.downloaded()}


def test_a_revision_is_not_lost_in_the_command() -> None:
    assert command(parse("a/b@refs/pr/3")) == "hf download a/b --revision refs/pr/3 --exclude '*.h5'"
    for name, pin in PINS.items():
        assert f"--revision {pin.commit}" in command(parse(name))
        assert command(parse(name)).endswith(f"--include {pin.weights}")


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refusal("someone/small@main")
