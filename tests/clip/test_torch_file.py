"""PyTorch's files without PyTorch: what is read of them, and that nothing in them is run."""

import pickle
import shlex
import shutil
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from clipbias.clip.torch_file import open_torch
from clipbias.errors import ClipbiasError
from tests import torch_files
from tests.fuzz.answers import answered
from tests.torch_files import ORDERED, numbers, pickle_of, tensor, text, whole

ZEROS = bytes(24)  # of six float32


def read(path: Path) -> dict[str, np.ndarray]:
    with open_torch(path) as file:
        return {name: found.read() for name, found in file.tensors.items()}


def refusal(folder: Path, description: bytes, members: dict[str, bytes] | None = None, **options) -> str:
    """The one sentence with which a file is refused, by whichever step of reading it."""
    torch_files.write(folder / "a.bin", description, {"0": ZEROS} if members is None else members, **options)
    message = answered(lambda: read(folder / "a.bin"), folder)
    assert message is not None
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_as_they_lie_there(tmp_path: Path, dtype) -> None:
    values = np.arange(24).astype(dtype)
    items = {
        "rows": tensor("0", np.dtype(dtype).name, 24, 0, (4, 6), (6, 1)),
        "columns": tensor("0", np.dtype(dtype).name, 24, 0, (6, 4), (1, 6)),
        "part": tensor("0", np.dtype(dtype).name, 24, 7, (2, 3), (6, 2)),
        "one": tensor("0", np.dtype(dtype).name, 24, 23, (), ()),
    }
    torch_files.write(tmp_path / "a.bin", pickle_of(items), {"0": values.tobytes()})
    found = read(tmp_path / "a.bin")
    table = values.reshape(4, 6)
    expected = {
        "rows": table,
        "columns": table.T,
        "part": np.stack([values[7:12:2], values[13:18:2]]),
        "one": values[23],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    inner = pickle_of({f"{prefix}a.weight": tensor("0", "float32", 6, 0, (6,), (1,))})
    outer = pickle_of({"epoch": whole(3), wrapper: inner[2:-1]}) if wrapper else inner
    torch_files.write(tmp_path / "a.pt", outer, {"0": ZEROS})
    assert read(tmp_path / "a.pt").keys() == {"a.weight"}


class Call:
    """Pickles as a call, as hostile files do."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_what_a_pickle_calls_is_named_and_not_called(tmp_path: Path, protocol: int) -> None:
    hostile = Call(Path.touch, tmp_path / "was_run"), Call(exec, f"open({str(tmp_path / 'was_run')!r}, 'w')")
    for call in hostile:
        message = refusal(tmp_path, pickle.dumps({"a": call}, protocol=protocol))
        assert any(name in message for name in ("getattr", "exec", "pathlib", "instruction", "Path"))
        assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "torch\nload", "numpy\nfromfile", "torch._utils\n_rebuild_qtensor", "a\n"]
)
def test_an_unknown_name_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, b"\x80\x02c" + name.encode() + b"\n" + text("true") + b"\x85R.")
    assert ".".join(name.split("\n")) in message


DEEP = b"\x80\x02)" + b"\x85" * 100_000
GOOD = tensor("0", "float32", 6, 0, (6,), (1,))
HOSTILE = {
    "nothing": b"",
    "only a mark": b"\x80\x02(",
    "no stop": pickle_of({"a": GOOD})[:-1],
    "a list": b"\x80\x02].",
    "no names": b"\x80\x02" + GOOD + b".",
    "deep": DEEP + b".",
    "deep as a key": b"\x80\x02}" + DEEP[2:] + b"Ns.",
    "deep dictionaries": b"\x80\x02" + b"}" + text("a") * 1 + b"}" + (text("a") + b"}") * 5000 + b"s" * 5001 + b".",
    "a dictionary in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a far memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a missing memo": b"\x80\x02j\xff\xff\xff\xff.",
    "a long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "a long array": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "many digits": b"I" + b"9" * 100_000 + b"\n.",
    "a storage for ever": pickle_of({"a": tensor("0", "float32", 2**62, 0, (6,), (1,))}),
    "a huge count": pickle_of({"a": tensor("0", "float32", 10**300, 0, (6,), (1,))}),
    "other length": pickle_of({"a": tensor("0", "float32", 5, 0, (5,), (1,))}),
    "beyond the end": pickle_of({"a": tensor("0", "float32", 6, 1, (6,), (1,))}),
    "a long stride": pickle_of({"a": tensor("0", "float32", 6, 0, (2,), (6,))}),
    "expanded": pickle_of({"a": tensor("0", "float32", 6, 0, (10**6, 10**6), (0, 0))}),
    "negative offset": pickle_of({"a": tensor("0", "float32", 6, -1, (6,), (1,))}),
    "negative stride": pickle_of({"a": tensor("0", "float32", 6, 5, (6,), (-1,))}),
    "negative size": pickle_of({"a": tensor("0", "float32", 6, 0, (-6,), (1,))}),
    "huge sizes": pickle_of({"a": tensor("0", "float32", 6, 0, (2**40, 2**40), (1, 1))}),
    "too few strides": pickle_of({"a": tensor("0", "float32", 6, 0, (2, 3), (1,))}),
    "many dimensions": pickle_of({"a": tensor("0", "float32", 6, 0, (1,) * 70, (1,) * 70)}),
    "a member that is not there": pickle_of({"a": tensor("../../etc/passwd", "float32", 6, 0, (6,), (1,))}),
    "used too often": pickle_of({str(i): GOOD for i in range(10_000)}),
    "a storage's name deep down": b"\x80\x02("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + DEEP[2:]
    + text("")
    + whole(6)
    + b"tQ.",
    "a storage's type deep down": b"\x80\x02(" + text("storage") + DEEP[2:] + text("0") + text("") + whole(6) + b"tQ.",
    "a storage's count deep down": b"\x80\x02("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("")
    + DEEP[2:]
    + b"tQ.",
    "several values": b"\x80\x02NN.",
    "a mark for a value": b"\x80\x02(.",
    "a tuple as storage": b"\x80\x02" + numbers((1, 2)) + b"Q.",
    "a call of a type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "an object of a function": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "attributes of a number": b"\x80\x02" + whole(1) + b"}b.",
    "too many arguments": b"\x80\x02ccollections\nOrderedDict\n" + numbers((1, 2)) + b"R.",
    "an instruction of others": b"\x80\x02ios\nsystem\n.",
    "an escape that is none": b"\x80\x02c\\c\n\n.",
    "bad text": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "unpickled twice": ORDERED + b"0" * 5 + b".",
}


@pytest.mark.parametrize("description", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_descriptions(tmp_path: Path, description: bytes) -> None:
    message = refusal(tmp_path, description)
    assert str(tmp_path / "a.bin") in message and message.count("\n") == 0


def test_a_long_description_is_not_followed(tmp_path: Path) -> None:
    assert "bytes" in refusal(tmp_path, b"\x80\x02" + b"N0" * (5 << 20) + b"N.")


def test_a_compressed_member_is_not_unpacked(tmp_path: Path) -> None:
    count = 1 << 20
    bomb = pickle_of({"a": tensor("0", "float32", count, 0, (count,), (1,))})
    assert "compressed" in refusal(tmp_path, bomb, {"0": bytes(4 * count)}, method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/data/0", bytes(4 * count), zipfile.ZIP_DEFLATED)
    with pytest.raises(ClipbiasError, match="compressed"):
        read(tmp_path / "a.bin")


def test_an_encrypted_archive(tmp_path: Path) -> None:
    torch_files.write(tmp_path / "a.bin", pickle_of({"a": GOOD}), {"0": ZEROS})
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[6] |= 1  # the flag of the first member, which is the description
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.bin").write_bytes(content)
    assert "encrypted" in answered(lambda: read(tmp_path / "a.bin"), tmp_path)


def test_archives_that_are_none(tmp_path: Path) -> None:
    good = pickle_of({"a": GOOD})
    torch_files.write(tmp_path / "a.bin", good, {"0": ZEROS})
    content = (tmp_path / "a.bin").read_bytes()
    for damaged in (b"", b"PK", content[:-30], content[40:], content.replace(b"archive/data/0", b"archive/data/1")):
        (tmp_path / "a.bin").write_bytes(damaged)
        with pytest.raises(ClipbiasError, match=r"a\.bin"):
            read(tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", good)
    with pytest.raises(ClipbiasError, match="two members of one name"):
        read(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ClipbiasError, match="git lfs pull"):
        read(tmp_path / "a.bin")


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    torch_files.write(tmp_path / "a.bin", pickle_of({"a": GOOD}), {"0": b"\x01" * 24})
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(content.replace(b"\x01" * 24, b"\x01" * 23 + b"\x02"))
    with pytest.raises(ClipbiasError, match="CRC"):
        read(tmp_path / "a.bin")


def test_the_format_before_zip_is_refused_with_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[1] / "data_files" / "formats" / "before_zip.bin"
    path = Path(shutil.copy(source, tmp_path / "what's $HOME.bin"))
    with pytest.raises(ClipbiasError, match=r"before 1\.6.*python -c") as refused:
        read(path)
    _, option, code = shlex.split(str(refused.value).partition("rewrites it: ")[2].removesuffix("."))
    assert option == "-c"
    saved = []
    fake = types.SimpleNamespace(load=lambda name, **_: name, save=lambda _, name: saved.append(name))
    monkeypatch.setitem(sys.modules, "torch", fake)
    exec(code, {})
    assert saved == [str(path)]


def test_what_contains_others_is_no_key(tmp_path: Path) -> None:
    """To hash it, deeply nested, would end the process."""
    assert "other keys than texts" in refusal(tmp_path, HOSTILE["deep as a key"])
