"""Files of weights of PyTorch's and Flax's: what is read of them, that nothing in them is run, and what is refused."""

import pickle
import resource
import shlex
import shutil
import sys
import types
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict

from clipbias.clip.formats import ALLOWED_NAMES, PickledObject, _Unpickler, open_torch, read_flax
from clipbias.errors import ClipbiasError
from tests import torch_files
from tests.fuzz.answers import answered
from tests.reference import formats
from tests.torch_files import numbers, pickle_of, tensor, text, whole

# PyTorch's files without PyTorch.

ZEROS = bytes(24)  # of six float32
GOOD = tensor("0", "float32", 6, 0, (6,), (1,))


def read(path: Path) -> dict[str, np.ndarray]:
    with open_torch(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def refusal(folder: Path, description: bytes, members: dict[str, bytes] | None = None, **options) -> str:
    """The one sentence with which a file is refused, by whichever step of reading it."""
    torch_files.write(folder / "a.bin", description, {"0": ZEROS} if members is None else members, **options)
    message = answered(lambda: read(folder / "a.bin"))
    assert message is not None and str(folder / "a.bin") in message and "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_as_they_lie_there(tmp_path, dtype):
    values = np.arange(24).astype(dtype)
    items = {
        "rows": tensor("0", np.dtype(dtype).name, 24, 0, (4, 6), (6, 1)),
        "columns": tensor("0", np.dtype(dtype).name, 24, 0, (6, 4), (1, 6)),
        "part": tensor("0", np.dtype(dtype).name, 24, 7, (2, 3), (6, 2)),
        "one": tensor("0", np.dtype(dtype).name, 24, 23, (), ()),
    }
    torch_files.write(tmp_path / "a.bin", pickle_of(items), {"0": values.tobytes()})
    table = values.reshape(4, 6)
    part = np.stack([values[7:12:2], values[13:18:2]])
    tensors = read(tmp_path / "a.bin")
    for name, value in {"rows": table, "columns": table.T, "part": part, "one": values[23]}.items():
        assert tensors[name].dtype == dtype
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_a_training_checkpoint_is_unwrapped(tmp_path, wrapper, prefix):
    inner = pickle_of({f"{prefix}a.weight": GOOD})
    outer = pickle_of({"epoch": whole(3), wrapper: inner[2:-1]}) if wrapper else inner
    torch_files.write(tmp_path / "a.pt", outer, {"0": ZEROS})
    assert read(tmp_path / "a.pt").keys() == {"a.weight"}


def test_tensors_in_lists_are_read_too(tmp_path):
    torch_files.write(tmp_path / "a.pt", pickle_of({"step": whole(3), "a": b"](" + GOOD + b"e"}), {"0": ZEROS})
    assert read(tmp_path / "a.pt").keys() == {"a.0"}


class Call:
    """Pickles as a call, as hostile files do."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_calls_is_not_called(tmp_path, protocol):
    hostile = Call(Path.touch, tmp_path / "was_run"), Call(exec, f"open({str(tmp_path / 'was_run')!r}, 'w')")
    for call in hostile:
        message = refusal(tmp_path, pickle.dumps({"a": call}, protocol=protocol))
        assert protocol < 2 or any(name in message for name in ("getattr", "exec", "pathlib"))
        assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os\nsystem", "builtins\neval", "builtins\ngetattr", "torch\nload", "numpy\nfromfile", "functools\npartial"),
        *("torch._utils\n_rebuild_qtensor", "copyreg\n_reconstructor", "__torch__\nA", "collections\nOrderedDict.x"),
        *("collections.abc\nCallable", "torch\n_utils._rebuild_tensor_v2.__globals__", "a\n"),
    ],
)
@pytest.mark.parametrize("instruction", [b"c%b\n(tR", b"c%b\n(t\x81", b"(i%b\n", b"(c%b\no", b"c%b\n}b"])
def test_a_name_stands_for_nothing(tmp_path, name, instruction):
    """Whatever is done with it: a call, a new object of either kind, attributes."""
    message = refusal(tmp_path, b"\x80\x02" + instruction % name.encode() + b".")
    full = ".".join(name.split("\n"))
    assert full in message or full == "__torch__.A" or instruction[:1] == b"("


def test_what_is_read_is_inert(tmp_path):
    """All that a description can make is a record of what it says, of a class that is its file's own."""
    for name in ALLOWED_NAMES:
        module, _, attribute = name.rpartition(".")
        named = f"c{module}\n{attribute}\n".encode()
        for made in (named + numbers((1,)) + b"R", named + numbers((1,)) + b"\x81"):
            value = _Unpickler(b"\x80\x02" + made + b"}" + text("a") + whole(1) + b"sb.").load()
            assert isinstance(value, PickledObject)
            assert (value.name, value.arguments, value.state) == (name, (1,), {"a": 1})
        message = refusal(tmp_path, b"\x80\x02" + named + b"}" + text("name") + whole(1) + b"sb.")  # to the class
        assert "damaged" in message
    assert PickledObject.name == "" and not vars(PickledObject).keys() & {"a"}


DEEP = b"\x80\x02)" + b"\x85" * 100_000


def described(key: bytes) -> bytes:
    """A tensor whose storage has this name."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("") + whole(6) + b"tQ"
    return pickle_of(
        {"a": b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(0) + numbers((6,)) + numbers((1,)) + b"tR"}
    )


HOSTILE = {
    "nothing": b"",
    "no stop": pickle_of({"a": GOOD})[:-1],
    "deep": DEEP + b".",
    "deep as a key": b"\x80\x02}" + DEEP[2:] + b"Ns.",
    "deep dictionaries": b"\x80\x02" + b"}" + text("a") + b"}" + (text("a") + b"}") * 5000 + b"s" * 5001 + b".",
    "a dictionary in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "dictionaries by the power": b"\x80\x02}q\x00" + (b"0}(" + text("a") + b"h\x00" + text("b") + b"h\x00uq\x00") * 50
    + b".",
    "a far memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a huge count": pickle_of({"a": tensor("0", "float32", 10**300, 0, (6,), (1,))}),
    "other length": pickle_of({"a": tensor("0", "float32", 5, 0, (5,), (1,))}),
    "beyond the end": pickle_of({"a": tensor("0", "float32", 6, 1, (6,), (1,))}),
    "expanded": pickle_of({"a": tensor("0", "float32", 6, 0, (10**6, 10**6), (0, 0))}),
    "negative offset": pickle_of({"a": tensor("0", "float32", 6, -1, (6,), (1,))}),
    "huge sizes": pickle_of({"a": tensor("0", "float32", 6, 0, (2**40, 2**40), (1, 1))}),
    "many dimensions": pickle_of({"a": tensor("0", "float32", 6, 0, (1,) * 70, (1,) * 70)}),
    "a member that is not there": pickle_of({"a": tensor("../../etc/passwd", "float32", 6, 0, (6,), (1,))}),
    "a storage's name deep down": described(key=DEEP[2:]),
    "a storage that is none": b"\x80\x02" + numbers((1, 2)) + b"Q.",
    "attributes of a number": b"\x80\x02" + whole(1) + b"}b.",
    "a call of a text": b"\x80\x02" + text("a") + b")R.",
    "an extension": b"\x80\x02\x82\x01.",
    "bad text": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
}  # fmt: skip


@pytest.mark.parametrize("description", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_descriptions(tmp_path, description):
    refusal(tmp_path, description)


def test_names_as_long_as_the_file_are_not_joined(tmp_path):
    key = text("a" * (1 << 20)) + b"q\x00"
    nested = b"\x80\x02}" + key + b"}h\x00" * 200 + b"}" + b"s" * 201 + b"."
    assert "nested beyond measure" in refusal(tmp_path, nested)


def test_archives_that_are_none(tmp_path):
    good = pickle_of({"a": GOOD})
    torch_files.write(tmp_path / "a.bin", good, {"0": b"\x01" * 24})
    content = (tmp_path / "a.bin").read_bytes()
    encrypted = bytearray(content)
    encrypted[6] |= 1  # the flag of the first member, which is the description
    encrypted[content.index(b"PK\x01\x02") + 8] |= 1
    for damaged, words in {
        b"": "zip",
        b"PK": "zip",
        content[:-30]: "zip",
        content[40:]: "",
        content.replace(b"archive/data/0", b"archive/data/1"): "length",
        content.replace(b"\x01" * 24, b"\x01" * 23 + b"\x02"): "CRC",
        bytes(encrypted): "encrypted",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
    }.items():
        (tmp_path / "a.bin").write_bytes(damaged)
        with pytest.raises(ClipbiasError, match=rf"a\.bin .*{words}"):
            read(tmp_path / "a.bin")
    assert "bytes" in refusal(tmp_path, b"\x80\x02" + b"N" * (9 << 20) + b".")


def test_members_that_overlap(tmp_path):
    """The first reaches over the header and the numbers of the second."""
    path = tmp_path / "a.bin"
    count = 1 << 10
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of({"a": tensor("0", "float32", count, 0, (count,), (1,))}))
        archive.writestr("archive/data/0", bytes(2 * count))
        archive.writestr("archive/data/1", bytes(3 * count))
        archive.fp.flush()
        first = archive.getinfo("archive/data/0")
        start = first.header_offset + 30 + len(first.filename)
        first.file_size = first.compress_size = 4 * count
        first.CRC = zlib.crc32(path.read_bytes()[start : start + 4 * count])
    with pytest.raises(ClipbiasError, match="its members overlap"):
        read(path)


def test_a_compressed_member_is_not_unpacked(tmp_path):
    count = 1 << 20
    bomb = pickle_of({"a": tensor("0", "float32", count, 0, (count,), (1,))})
    assert "compressed" in refusal(tmp_path, bomb, {"0": bytes(4 * count)}, method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/data/0", bytes(4 * count), zipfile.ZIP_DEFLATED)
    with pytest.raises(ClipbiasError, match="compressed"):
        read(tmp_path / "a.bin")


def test_the_format_before_zip_is_refused_with_a_command(tmp_path, monkeypatch):
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


# Flax's files against `flax.serialization`, and the page for their users.

FILE = formats.FORMATS / "flax" / "flax_model.msgpack"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    tensors = read_flax(path)
    arrays = {name: each.read() for name, each in tensors.items()}
    for name, array in arrays.items():
        assert (array.shape, array.dtype) == (tensors[name].shape, jnp.dtype(tensors[name].dtype))
    return arrays


def read_content(content: bytes, tmp_path: Path) -> dict[str, np.ndarray]:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    return read_arrays(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_type_and_size(dtype, tmp_path):
    """Also a scalar of NumPy's, and an array with no numbers."""
    arrays = {f"of{n}": (np.arange(n) % 99).astype(jnp.dtype(dtype)) for n in (0, 1, 40, 70_000)}
    tree = {"a": {"b": arrays}, "scalar": np.asarray(2.5, jnp.dtype(dtype)), "c": np.ones((2, 3), jnp.dtype(dtype))}
    tensors = read_content(msgpack_serialize(tree), tmp_path)
    expected = flatten_dict(tree, sep="/")
    assert set(tensors) == set(expected)
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)


def array(shape, dtype="float32", data=b"", code=1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data), use_bin_type=True))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + msgpack.packb(array([], data=b"\0" * 4))


REFUSED = {
    "empty": b"",
    "too few bytes": msgpack.packb({"a": array([2], data=b"\0" * 4)}),
    "a huge shape": msgpack.packb({"a": array([2**62, 2**62], data=b"\0" * 4)}),
    "objects within": msgpack.packb({"a": array([1], "O,f4", b"\0" * 12)}),
    "an unknown extension": msgpack.packb({"a": array([1], data=b"\0" * 4, code=7)}),
    "a complex number": msgpack_serialize({"a": 1j}),
    "a key that is no text": msgpack.packb({1: array([1], data=b"\0" * 4)}),
    "deep nesting": nested(100_000),
    "a map that claims entries": b"\xdf\xff\xff\xff\xff",
    "chunks that are none": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {}}}),
    "more behind it": msgpack.packb({"a": array([1], data=b"\0" * 4)}) + b"\0",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_flax_model_is_refused_in_one_sentence(content, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClipbiasError, match=r"^/.*flax_model\.msgpack is damaged or no Flax model") as error:
        read_content(content, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB: nothing claimed is made
